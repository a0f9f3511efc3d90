"""Measurements of a sweep as a chart: time and memory by the size that varies, a line for every provider."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter

from kd_kernels.benchmark.measure import Measurement
from kd_kernels.benchmark.plot import colours_of, finish


def save(measurements: Sequence[Measurement], path: Path) -> None:
    """Two panels for every size that varies, kind, dtype and direction; the format follows from the path."""
    series: dict[str, list[Measurement]] = defaultdict(list)
    for m in measurements:
        series[_fixed(m)].append(m)
    colours = colours_of(measurements)
    figure = Figure(figsize=(11, 1 + 3.4 * len(series)), layout="constrained")
    rows = figure.subplots(len(series), 2, squeeze=False)
    for (time, memory), (name, group) in zip(rows, series.items(), strict=True):
        group.sort(key=_x)
        for provider, colour in colours.items():
            found = [(m, o) for m in group for o in m.outcomes if o.provider == provider]
            timed = [(_x(m), o.time.times(1e3)) for m, o in found if o.time]
            _line(time, [(x, t.median) for x, t in timed], colour, provider)
            time.fill_between([x for x, _ in timed], [t.p20 for _, t in timed], [t.p80 for _, t in timed],
                              color=colour, alpha=0.2, linewidth=0)  # fmt: skip
            held = [(_x(m), o.extra_bytes / 1e6) for m, o in found if o.extra_bytes is not None]
            _line(memory, held, colour, provider)
        floor = [(_x(m), 1e3 * m.floor.median) for m in group if m.floor]
        _line(time, floor, "black", group[0].case.floor_name, linestyle="--")
        planned = [(_x(m), m.case.planned_bytes / 1e6) for m in group if m.case.planned_bytes is not None]
        _line(memory, planned, "grey", "planned", linestyle=":")
        time.set_title(name, loc="left", fontsize="medium")
        time.set_ylabel("time, ms (median; p20 to p80)")
        memory.set_ylabel("extra peak memory, MB")
        for ax in (time, memory):
            _scale(ax, group)
    finish(figure, path)


def _fixed(m: Measurement) -> str:
    """What the points of a line have in common."""
    case = m.case
    sizes = [f"{name.replace('_', ' ')} {size}" for name, size in case.sizes.items() if name != case.axis]
    return f"{case.kind} by {case.axis}: {', '.join([*sizes, case.dtype_name, case.direction, case.device])}"


def _x(m: Measurement) -> int:
    return m.case.sizes[m.case.axis]


def _line(ax: Axes, points: Sequence[tuple[int, float]], colour: str, label: str, linestyle: str = "-") -> None:
    if points:
        marker = "o" if linestyle == "-" else ""
        ax.plot(*zip(*points, strict=True), marker=marker, color=colour, linestyle=linestyle, label=label)


def _scale(ax: Axes, group: Sequence[Measurement]) -> None:
    sizes = [_x(m) for m in group]
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.yaxis.set_major_formatter(LogFormatter())
    ax.yaxis.set_minor_formatter(LogFormatter())
    ax.set_xticks(sizes, [f"{size:,}" for size in sizes], rotation=20)
    ax.set_xticks([], minor=True)
    ax.set_xlabel(group[0].case.axis.replace("_", " "))
    ax.grid(alpha=0.3)
