"""Measurements as a chart: time by provider for every kind, with the floor where there is one."""

from collections.abc import Sequence
from itertools import cycle, groupby
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
    colours = colours_of(measurements)
    width = 5 + 0.8 * max(len(group) for _, group in panels)
    figure = Figure(figsize=(width, 1 + 3.2 * len(panels)), layout="constrained")
    axes = figure.subplots(len(panels), squeeze=False)[:, 0]
    for ax, (name, group) in zip(axes, panels, strict=True):
        _draw(ax, group, colours)
        ax.set_title(name, loc="left", fontsize="medium")
    finish(figure, path)


def colours_of(measurements: Sequence[Measurement]) -> dict[str, str]:
    """A colour for every provider that has a time."""
    providers = dict.fromkeys(o.provider for m in measurements for o in m.outcomes if o.time)
    return dict(zip(providers, cycle(_COLOURS), strict=False))


def finish(figure: Figure, path: Path) -> None:
    """One legend for all panels, and the file."""
    handles = [pair for ax in figure.axes for pair in zip(*ax.get_legend_handles_labels(), strict=True)]
    entries = {label: handle for handle, label in handles}
    figure.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=4, fontsize="small")
    figure.savefig(path, dpi=150)


def _draw(ax: Axes, measurements: Sequence[Measurement], colours: dict[str, str]) -> None:
    """A group of bars for every measurement, a bar in it for every provider, and the floor across the group."""
    width = _GROUP_WIDTH / max(1, len(colours))
    for i, (provider, colour) in enumerate(colours.items()):
        left = -_GROUP_WIDTH / 2 + (i + 0.5) * width
        bars = [(x + left, o.time.times(1e3)) for x, m in enumerate(measurements)
                for o in m.outcomes if o.provider == provider and o.time]  # fmt: skip
        if bars:
            positions, times = zip(*bars, strict=True)
            spread = [[t.median - t.p20 for t in times], [t.p80 - t.median for t in times]]
            ax.bar(positions, [t.median for t in times], 0.9 * width, yerr=spread, color=colour, label=provider)
    floors = [(x, 1e3 * m.floor.median) for x, m in enumerate(measurements) if m.floor]
    if floors:
        xs, heights = zip(*floors, strict=True)
        starts = [x - _GROUP_WIDTH / 2 for x in xs]
        ends = [x + _GROUP_WIDTH for x in starts]
        ax.hlines(heights, starts, ends, color="black", linestyle="--", label=measurements[0].case.floor_name)
    ax.set_xticks(range(len(measurements)), [m.case.kind for m in measurements], rotation=20, ha="right")
    ax.set_yscale("log")
    lowest = [1e3 * t.median for m in measurements for t in (m.floor, *(o.time for o in m.outcomes)) if t]
    ax.set_ylim(bottom=min(lowest, default=1) / 2)
    ax.set_ylabel("time, ms (median; p20 to p80)")
    ax.grid(axis="y", alpha=0.3)
    ax.set_axisbelow(True)
