"""What a run found, for people."""

import math
from typing import Any

WIDTH = 40
ROWS = {
    "cross_entropy": "cross-entropy (nats/token)",
    "perplexity": "perplexity",
    "forward_kl": "forward KL to the teacher (nats/token)",
    "reverse_kl": "reverse KL to the teacher (nats/token)",
}


def result(before: dict[str, float], after: dict[str, float]) -> dict[str, Any]:
    """The evaluations before and after, set against each other."""
    sides = {
        side: {**means, "perplexity": _perplexity(means["cross_entropy"])}
        for side, means in (("before", before), ("after", after))
    }
    teacher = after["teacher_cross_entropy"]
    return {
        "held_out_tokens": after["tokens"],
        **{side: {name: means[name] for name in ROWS} for side, means in sides.items()},
        "teacher": {"cross_entropy": teacher, "perplexity": _perplexity(teacher)},
        "improved": {name: after[name] < before[name] for name in ("cross_entropy", "forward_kl")},
    }


def summary(result: dict[str, Any]) -> str:
    """A table, and a sentence that says whether the student improved."""
    columns = ("before", "after", "teacher")
    lines = [f"held-out text: {result['held_out_tokens']} tokens".ljust(WIDTH) + "".join(f"{c:>12}" for c in columns)]
    for name, title in ROWS.items():
        values = (result[column].get(name) for column in columns)
        lines.append(title.ljust(WIDTH) + "".join(f"{'' if v is None else _short(v):>12}" for v in values))
    return "\n".join([*lines, "", _verdict(result)])


def _verdict(result: dict[str, Any]) -> str:
    changes = {
        name: f"{title} {_short(result['before'][name])} -> {_short(result['after'][name])}"
        for name, title in (("cross_entropy", "cross-entropy"), ("forward_kl", "KL to the teacher"))
    }
    better = [changes[name] for name in changes if result["improved"][name]]
    worse = [changes[name] for name in changes if not result["improved"][name]]
    if not worse:
        return f"The student improved on held-out text: {', '.join(better)}."
    if not better:
        return f"The student did not improve on held-out text: {', '.join(worse)}."
    return f"The student improved on held-out text in one respect: {better[0]}; but not in the other: {worse[0]}."


def _short(value: float) -> str:
    return f"{value:.4g}" if value < 1000 else f"{value:,.0f}"


def _perplexity(cross_entropy: float) -> float:
    return math.exp(min(cross_entropy, 700))  # beyond that it would overflow
