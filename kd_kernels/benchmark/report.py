"""Measurements as a table, as JSON and as CSV."""

import csv
import json
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

from kd_kernels.benchmark.case import Case
from kd_kernels.benchmark.measure import Measurement, Outcome
from kd_kernels.benchmark.timing import Spread

SCHEMA = 4

# The columns of Liger's benchmark data.
CSV_COLUMNS = (
    "kernel_name", "kernel_provider", "kernel_operation_mode", "metric_name", "metric_unit", "x_name", "x_label",
    "x_value", "y_value_50", "y_value_20", "y_value_80", "extra_benchmark_config_str", "gpu_name", "timestamp",
    "liger_version",
)  # fmt: skip


def machine_line(machine: dict) -> str:
    where = f"{machine['gpu']}, CUDA {machine['cuda']}" if machine["gpu"] else f"{machine['cpu']} ({machine['simd']})"
    busy = "" if machine["load_average"] is None else f", load average {machine['load_average']:.1f}"
    versions = f"torch {machine['torch']}, kd_kernels {machine['kd_kernels']}"
    return f"{where}, {machine['threads']} threads{busy}, {versions}"


def title(case: Case) -> str:
    """What the cases of one table have in common."""
    sizes = [f"{name.replace('_', ' ')} {size}" for name, size in case.sizes.items()]
    return f"{case.target}: {', '.join([*sizes, case.dtype_name, case.direction, case.device, *case.remarks])}"


def heading(case: Case) -> str:
    return _line((column.format, column.heading) for column in _columns(case))


def table(measurement: Measurement) -> Iterator[str]:
    """The rows of one case: its floor, where it has one, then the providers that are there."""
    columns = _columns(measurement.case)
    floor = Outcome(measurement.case.floor_name, ours=False, status="ok", time=measurement.floor)
    for o in (*([] if measurement.floor is None else [floor]), *measurement.outcomes):
        if o.status == "missing":
            continue
        cells = [(column.format, column.cell(measurement, o)) for column in columns[: None if o.time else 2]]
        if o.time is None:
            cells.append(("", f"{o.status.upper()}: {textwrap.shorten(o.reason, 120)}"))
        yield _line(cells)


def footnotes(measurements: Sequence[Measurement]) -> Iterator[str]:
    """How long compilation took, who is not there, and what the columns mean."""
    outcomes = [o for m in measurements for o in m.outcomes]
    compiled = [o.first_call_seconds for o in outcomes if o.provider == "compile" and o.status == "ok"]
    if compiled:
        yield f"compile: first calls took {min(compiled):.1f} to {max(compiled):.1f} s, which is not in the times"
    yield from dict.fromkeys(f"{o.provider}: {o.reason}" for o in outcomes if o.status == "missing")
    yield from _legend([m.case for m in measurements])


def write_json(
    path: Path, measurements: Sequence[Measurement], machine: dict, ceilings: dict, commit: str | None, arguments: dict
) -> None:
    document = {
        "schema": SCHEMA,
        "timestamp": _now(),
        "commit": commit,
        "machine": machine,
        "ceilings": ceilings,
        "arguments": arguments,
        "cases": [_as_dict(m) for m in measurements],
    }
    path.write_text(json.dumps(document, indent=1, default=str) + "\n")


def write_csv(path: Path, measurements: Sequence[Measurement], machine: dict) -> None:
    """Liger's schema: times in ms, memory in MB; a memory has no spread, its quantiles are the same."""
    timestamp = _now()
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(CSV_COLUMNS)
        for m in measurements:
            mode = "full" if m.case.backward else "forward"
            (x_name, x_value), *sizes = m.case.shape.items()
            extra = {
                **dict(sizes),
                "remarks": m.case.remarks,
                "dtype": m.case.dtype_name,
                "kd_kernels": machine["kd_kernels"],
            }
            for o in m.outcomes:
                metrics = []
                if o.time:
                    metrics.append(("speed", "ms", *(1e3 * t for t in (o.time.median, o.time.p20, o.time.p80))))
                if o.extra_bytes is not None:
                    metrics.append(("memory", "MB", *[o.extra_bytes / 2**20] * 3))
                for metric, unit, *values in metrics:
                    writer.writerow([
                        m.case.kind, o.provider, mode, metric, unit, x_name, x_name, x_value, *values,
                        json.dumps(extra), machine["gpu"] or machine["cpu"], timestamp, "",
                    ])  # fmt: skip


def _as_dict(m: Measurement) -> dict:
    case = m.case
    return {
        "target": case.target,
        "kind": case.kind,
        "shape": case.shape,
        "dtype": case.dtype_name,
        "device": case.device,
        "direction": case.direction,
        "seed": case.seed,
        "remarks": case.remarks,
        "work": {"amount": case.work, "unit": case.work_unit.removeprefix("G")},
        "memory_unit": {"name": case.memory_unit, "bytes": case.unit_bytes},
        "planned_bytes": case.planned_bytes,
        "floor": None if m.floor is None else {"name": case.floor_name, "seconds": asdict(m.floor)},
        "providers": [_outcome_as_dict(m, o) for o in m.outcomes],
    }


def _outcome_as_dict(m: Measurement, o: Outcome) -> dict:
    timed = o.time is not None
    return {
        "name": o.provider,
        "status": o.status,
        "reason": o.reason,
        "seconds": asdict(o.time) if timed else None,
        "first_call_seconds": o.first_call_seconds,
        "extra_bytes": o.extra_bytes,
        "memory_ratio": m.memory_ratio(o),
        "times_floor": m.times_floor(o) if timed else None,
        "share_of_floor": 1 / m.times_floor(o) if timed and m.floor else None,
        "rate": m.rate(o) if timed else None,
        **{f"speedup_over_{over}": m.speedup(o, over) if timed else None for over in m.case.baselines},
    }


@dataclass(frozen=True)
class _Column:
    heading: str
    format: str
    cell: Callable[[Measurement, Outcome], str]  # of an outcome that has a time


def _columns(case: Case) -> list[_Column]:
    floor, unit = case.floor_name, case.memory_unit
    speedups = [
        _Column(f"x {over}", f">{width}", lambda m, o, over=over: _short(m.speedup(o, over)))
        for over, width in zip(case.baselines, (8, 10), strict=True)
    ]
    times_floor = _Column(f"x {floor}", ">11", lambda m, o: _short(m.times_floor(o)))
    of_floor = _Column(f"of {floor}", ">12", lambda m, o: f"{100 / m.times_floor(o):.0f} %")
    return [
        _Column("kind", "<16", lambda m, o: m.case.kind),
        _Column("provider", "<12", lambda m, o: o.provider),
        _Column("median", ">10", lambda m, o: _duration(o.time)[0]),
        _Column("[p20 - p80]", ">19", lambda m, o: _duration(o.time)[1]),
        *speedups,
        *[times_floor] * (floor is not None),
        _Column(f"{case.work_unit}/s", ">8", lambda m, o: f"{m.rate(o) / 1e9:.1f}"),
        *[of_floor] * (floor is not None),
        _Column("MB", ">9", lambda m, o: "" if o.extra_bytes is None else f"{o.extra_bytes / 1e6:.0f}"),
        _Column(f"x {unit}", ">8", lambda m, o: _short(m.memory_ratio(o), digits=2)),
    ]


def _legend(cases: Sequence[Case]) -> Iterator[str]:
    """What the columns mean."""
    compared = ", ".join(dict.fromkeys(f"x {over}" for case in cases for over in case.baselines))
    floors = dict.fromkeys(case.floor_name for case in cases if case.floor_name)
    times_floor = "".join(f" x {floor}: time over that of the row {floor}." for floor in floors)
    yield f"{compared}: times faster than these.{times_floor} MB: extra peak memory."
    for unit in dict.fromkeys(case.memory_unit for case in cases):
        yield f"x {unit}: extra peak memory over the size of one tensor of {unit}, or its gradient."
    yield from dict.fromkeys(case.legend for case in cases)


def _line(cells: Iterable[tuple[str, str]]) -> str:
    return " ".join(format(cell, spec) for spec, cell in cells).rstrip()


def _duration(time: Spread) -> tuple[str, str]:
    unit, factor = ("us", 1e6) if time.median < 1e-3 else ("ms", 1e3)
    median, p20, p80 = (_short(factor * t) for t in (time.median, time.p20, time.p80))
    return f"{median} {unit}", f"[{p20} - {p80}]"


def _short(x: float | None, digits: int | None = None) -> str:
    """To three digits, or so many after the point; nothing where there is no number."""
    if x is None:
        return ""
    return f"{x:.{(0 if x >= 100 else 1 if x >= 10 else 2) if digits is None else digits}f}"


def _now() -> str:
    return datetime.now().strftime("%Y-%m-%d %H:%M:%S")
