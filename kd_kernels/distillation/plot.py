"""A run, or several runs side by side, as one picture."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

MEMORY = {"peak_rss_mb": "peak resident memory (MiB)", "peak_cuda_mb": "peak GPU memory (MiB)"}
MEASURES = {"forward_kl": "forward KL to the teacher", "cross_entropy": "cross-entropy"}  # what there is first


def draw(records: list[dict[str, Any]], title: str, path: Path) -> None:
    """Loss, throughput and memory over the steps of `metrics.jsonl`, as PNG."""
    steps = [r for r in records if "loss" in r]
    evaluations = [r for r in records if "eval" in r]
    memory = next(name for name in MEMORY if name in steps[0])
    figure = Figure(figsize=(8, 9), layout="constrained")
    loss, speed, peak = figure.subplots(3, sharex=True)
    figure.suptitle(title)

    x = [r["step"] for r in steps]
    loss.plot(x, [r["loss"] for r in steps], label="training loss")
    measure = next(name for name in MEASURES if name in evaluations[0]["eval"])
    loss.plot(
        [r["step"] for r in evaluations], [r["eval"][measure] for r in evaluations],
        "o", label=f"held-out {MEASURES[measure]}",
    )  # fmt: skip
    loss.set_ylabel("loss (nats/token)")
    loss.legend()
    speed.plot(x, [r["tokens_per_s"] for r in steps], color="tab:green", linewidth=2)
    speed.set_ylabel("throughput (tokens/s)")
    peak.plot(x, [r[memory] for r in steps], color="tab:red", linewidth=2)
    peak.set_ylabel(MEMORY[memory])
    peak.set_xlabel("step")
    for axes in (loss, speed, peak):
        axes.update_datalim([(x[0], 0)])  # so that the margin above is one of all the height
        axes.autoscale_view()
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
    figure.savefig(path, format="png", dpi=120)


def draw_comparison(result: Mapping[str, Any], columns: Mapping[str, str], path: Path) -> None:
    """A bar for each run in each column of `comparison.json`, as PNG.

    Args:
        result: what the file holds.
        columns: its numbers of a run, and their titles.
        path: of the picture.
    """
    labels = list(result["runs"])
    figure = Figure(figsize=(3 * len(columns), 1.5 + 0.4 * len(labels)), layout="constrained")
    for axes, (name, title) in zip(figure.subplots(1, len(columns), sharey=True), columns.items(), strict=True):
        axes.barh(labels, [result["runs"][label][name] for label in labels])
        if name in result["teacher"]:
            axes.axvline(result["teacher"][name], color="black", linestyle="--")
            title = f"{title} (dashed: the teacher's)"
        axes.set_xlabel(title)
        axes.grid(axis="x", alpha=0.3)
        axes.invert_yaxis()
    figure.suptitle("held-out text (nats/token), time and memory")
    figure.savefig(path, format="png", dpi=120)
