"""Measurements as a table, as JSON and as CSV."""

import csv
import json
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path

from kd_kernels.benchmark.case import Case
from kd_kernels.benchmark.measure import Measurement, Outcome
from kd_kernels.benchmark.timing import Spread

SCHEMA = 2

# Format of the table's columns.
_FORMATS = ("<16", "<12", ">10", ">19", ">8", ">10", ">11", ">8", ">12", ">9", ">8")

_LEGEND = """\
x eager, x compile: times faster than these. x {0}: time over that of the row {0}. MB: extra peak memory.
x logits: extra peak memory over the size of one tensor of logits, or its gradient."""

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
    floor = case.floor_name
    return _line([
        "kind", "provider", "median", "[p20 - p80]", "x eager", "x compile", f"x {floor}", f"{case.work_unit}/s",
        f"of {floor}", "MB", "x logits",
    ])  # fmt: skip


def table(measurement: Measurement) -> Iterator[str]:
    """The rows of one case: the floor, then the providers that are there."""
    kind = measurement.case.kind
    floor = Outcome(measurement.case.floor_name, ours=False, status="ok", time=measurement.floor)
    for o in (floor, *measurement.outcomes):
        if o.status == "missing":
            continue
        if o.time is None:
            yield _line([kind, o.provider, f"{o.status.upper()}: {textwrap.shorten(o.reason, 120)}"])
            continue
        speedups = (measurement.speedup(o, over) for over in ("eager", "compile"))
        memory = measurement.memory_ratio(o)
        yield _line([
            kind, o.provider, *_duration(o.time), *("" if s is None else _short(s) for s in speedups),
            _short(measurement.times_floor(o)), f"{measurement.rate(o) / 1e9:.1f}",
            f"{100 / measurement.times_floor(o):.0f} %", *(["", ""] if memory is None else [
                f"{o.extra_bytes / 1e6:.0f}", f"{memory:.2f}",
            ]),
        ])  # fmt: skip


def footnotes(measurements: Sequence[Measurement]) -> Iterator[str]:
    """How long compilation took, who is not there, and what the columns mean."""
    outcomes = [o for m in measurements for o in m.outcomes]
    compiled = [o.first_call_seconds for o in outcomes if o.provider == "compile" and o.status == "ok"]
    if compiled:
        yield f"compile: first calls took {min(compiled):.1f} to {max(compiled):.1f} s, which is not in the times"
    yield from dict.fromkeys(f"{o.provider}: {o.reason}" for o in outcomes if o.status == "missing")
    for name, legend in dict.fromkeys((m.case.floor_name, m.case.legend) for m in measurements):
        yield _LEGEND.format(name)
        yield legend


def write_json(
    path: Path, measurements: Sequence[Measurement], machine: dict, commit: str | None, arguments: dict
) -> None:
    document = {
        "schema": SCHEMA,
        "timestamp": _now(),
        "commit": commit,
        "machine": machine,
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
        "logits_bytes": case.logits_bytes,
        "planned_bytes": case.planned_bytes,
        "floor": {"name": case.floor_name, "seconds": asdict(m.floor)},
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
        "speedup_over_eager": m.speedup(o, "eager") if timed else None,
        "speedup_over_compile": m.speedup(o, "compile") if timed else None,
    }


def _line(cells: Iterable[str]) -> str:
    return " ".join(format(cell, spec) for cell, spec in zip(cells, _FORMATS, strict=False)).rstrip()


def _duration(time: Spread) -> tuple[str, str]:
    unit, factor = ("us", 1e6) if time.median < 1e-3 else ("ms", 1e3)
    median, p20, p80 = (_short(factor * t) for t in (time.median, time.p20, time.p80))
    return f"{median} {unit}", f"[{p20} - {p80}]"


def _short(x: float) -> str:
    return f"{x:.{0 if x >= 100 else 1 if x >= 10 else 2}f}"


def _now() -> str:
    return datetime.now().strftime("%Y-%m-%d %H:%M:%S")
