"""Measurements as a chart: time by provider for every kind, with the floor."""

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kd_kernels.benchmark.measure import Measurement
from kd_kernels.benchmark.report import title

# Okabe-Ito: told apart by colour-blind readers, and in grey.
_COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00")
_GROUP_WIDTH = 0.8  # of the distance between kinds


def save(measurements: Sequence[Measurement], path: Path) -> None:
    """One panel for each title (shape, dtype, direction); the format follows from the path."""
    panels = [(name, list(group)) for name, group in groupby(measurements, lambda m: title(m.case))]
    width = 5 + 0.8 * max(len(group) for _, group in panels)
    figure = Figure(figsize=(width, 1 + 3.2 * len(panels)), layout="constrained")
    axes = figure.subplots(len(panels), squeeze=False)[:, 0]
    for ax, (name, group) in zip(axes, panels, strict=True):
        _draw(ax, group)
        ax.set_title(name, loc="left", fontsize="medium")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize="small")
    figure.savefig(path, dpi=150)


def _draw(ax: Axes, measurements: Sequence[Measurement]) -> None:
    names = list(dict.fromkeys(o.provider for m in measurements for o in m.outcomes if o.time))
    width = _GROUP_WIDTH / max(1, len(names))
    for i, (name, colour) in enumerate(zip(names, _COLOURS, strict=False)):
        bars = [(x, o.time) for x, m in enumerate(measurements) for o in m.outcomes if o.provider == name and o.time]
        medians = [1e3 * t.median for _, t in bars]
        spread = [[1e3 * (t.median - t.p20) for _, t in bars], [1e3 * (t.p80 - t.median) for _, t in bars]]
        positions = [x - _GROUP_WIDTH / 2 + (i + 0.5) * width for x, _ in bars]
        ax.bar(positions, medians, 0.9 * width, yerr=spread, color=colour, label=name, error_kw={"elinewidth": 1})
    floors = [1e3 * m.floor.median for m in measurements]
    ends = [x - _GROUP_WIDTH / 2 for x in range(len(floors))], [x + _GROUP_WIDTH / 2 for x in range(len(floors))]
    ax.hlines(
        floors, *ends, color="black", linestyle="--", linewidth=1, label="floor: moving the data at copy bandwidth"
    )
    ax.set_xticks(range(len(measurements)), [m.case.kind for m in measurements], rotation=20, ha="right")
    ax.set_yscale("log")
    ax.set_ylim(bottom=min(floors) / 2)
    ax.set_ylim(bottom=min(floors) / 2)
    ax.set_ylabel("time, ms (median; p20 to p80)")
    ax.grid(axis="y", alpha=0.3)
    ax.set_axisbelow(True)
