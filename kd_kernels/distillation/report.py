"""What a run found, for people."""

import math
from typing import Any

WIDTH = 40
ROWS = {
    "cross_entropy": "cross-entropy (nats/token)",
    "perplexity": "perplexity",
    "bits_per_byte": "cross-entropy (bits/byte)",
    "forward_kl": "forward KL to the teacher (nats/token)",
    "reverse_kl": "reverse KL to the teacher (nats/token)",
    "sinkd": "SinKD <P, C> (per token)",
    "uld": "ULD (per token)",
    "multilevel_ot": "MultiLevelOT (per token)",
    "had": "  absolute differences of tokens",
    "sl": "  logarithmic cost of tokens",
    "sd": "  Sinkhorn distance of sequences",
}
# What tells whether a student improved: on the text, where it can be in a unit of the text, and beside the teacher.
TEXT = {"bits_per_byte": "bits per byte", "cross_entropy": "cross-entropy"}
TEACHER = {"sinkd": "SinKD", "uld": "ULD", "multilevel_ot": "MultiLevelOT", "forward_kl": "KL to the teacher"}


def result(before: dict[str, float], after: dict[str, float]) -> dict[str, Any]:
    """The evaluations before and after, set against each other."""
    sides = {"before": before, "after": after}
    sides["teacher"] = {
        name.removeprefix("teacher_"): value for name, value in after.items() if name.startswith("teacher_")
    }
    full = {side: {**means, "perplexity": _perplexity(means["cross_entropy"])} for side, means in sides.items()}
    return {
        "held_out_tokens": after["tokens"],
        **{side: {name: means[name] for name in ROWS if name in means} for side, means in full.items()},
        "improved": {name: after[name] < before[name] for name in _measures(after)},
    }


def summary(result: dict[str, Any]) -> str:
    """A table, and a sentence that says whether the student improved."""
    columns = ("before", "after", "teacher")
    lines = [f"held-out text: {result['held_out_tokens']} tokens".ljust(WIDTH) + "".join(f"{c:>12}" for c in columns)]
    for name in result["after"]:
        values = (result[column].get(name) for column in columns)
        lines.append(ROWS[name].ljust(WIDTH) + "".join(f"{'' if v is None else _short(v):>12}" for v in values))
    return "\n".join([*lines, "", _verdict(result)])


def _measures(evaluation: dict[str, float]) -> dict[str, str]:
    """The two numbers that decide, and what they are called."""
    return dict(next((n, title) for n, title in known.items() if n in evaluation) for known in (TEXT, TEACHER))


def _verdict(result: dict[str, Any]) -> str:
    changes = {
        name: f"{title} {_short(result['before'][name])} -> {_short(result['after'][name])}"
        for name, title in _measures(result["after"]).items()
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
