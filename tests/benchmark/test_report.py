import csv
import json
from dataclasses import replace

import pytest
import torch

import kd_kernels as kd
from kd_kernels.benchmark import report
from kd_kernels.benchmark.measure import Measurement, Outcome
from kd_kernels.benchmark.rows import RowsCase
from kd_kernels.benchmark.timing import Spread

MACHINE = {"cpu": "a CPU", "gpu": None, "kd_kernels": "1.2.3"}


@pytest.fixture
def measurement():
    case = RowsCase(divergence=kd.JSD(), rows=512, vocab=1000, dtype=torch.bfloat16, device="cpu", backward=True)
    outcomes = (
        Outcome("kd-cpu", True, "ok", extra_bytes=1 << 20, first_call_seconds=1.0, time=Spread(1e-3, 2e-3, 3e-3, 9)),
        Outcome("eager", False, "ok", time=Spread(18e-3, 20e-3, 30e-3, 9)),
        Outcome("compile", False, "wrong", "the loss is off by 1"),
        Outcome("liger", False, "skipped", "too large"),
        Outcome("trl", False, "missing", "not installed"),
    )
    return Measurement(case, outcomes, floor=Spread(0.75e-3, 1.5e-3, 2.25e-3, 9))


def test_table(measurement):
    heading, (floor, ours, eager, wrong, skipped) = report.heading(measurement.case), report.table(measurement)
    for line, cells in (
        (floor, "jsd floor 1.50 ms [0.75 - 2.25] 13.3 1.00 2.0 100 %"),
        (ours, "jsd kd-cpu 2.00 ms [1.00 - 3.00] 10.0 1.33 1.5 75 % 1 1.02"),
        (eager, "jsd eager 20.0 ms [18.0 - 30.0] 1.00 13.3 0.2 8 %"),
        (wrong, "jsd compile WRONG: the loss is off by 1"),
        (skipped, "jsd liger SKIPPED: too large"),
    ):
        assert line.split() == cells.split()
    for column, cell in {"x eager": "10.0", "x floor": "1.33", "x logits": "1.02"}.items():
        assert ours[: heading.index(column) + len(column)].endswith(f" {cell}")


def test_short_times_are_in_microseconds(measurement):
    outcome = replace(measurement.outcomes[0], time=Spread(20e-6, 21.25e-6, 1e-3, 9))
    _, row = report.table(replace(measurement, outcomes=(outcome,)))
    assert "21.2 us       [20.0 - 1000]" in row


def test_footnotes(measurement):
    compiled = replace(measurement.outcomes[0], provider="compile", first_call_seconds=7.06)
    lines = list(report.footnotes([measurement, replace(measurement, outcomes=(compiled, measurement.outcomes[4]))]))
    assert lines[0] == "compile: first calls took 7.1 to 7.1 s, which is not in the times"
    assert lines.count("trl: not installed") == 1


def test_csv_has_the_columns_of_liger(measurement, tmp_path):
    path = tmp_path / "out.csv"
    report.write_csv(path, [measurement], MACHINE)
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert ",".join(rows[0]) == (
        "kernel_name,kernel_provider,kernel_operation_mode,metric_name,metric_unit,x_name,x_label,x_value,"
        "y_value_50,y_value_20,y_value_80,extra_benchmark_config_str,gpu_name,timestamp,liger_version"
    )
    assert [(r["kernel_provider"], r["metric_name"]) for r in rows] == [
        ("kd-cpu", "speed"),
        ("kd-cpu", "memory"),
        ("eager", "speed"),
    ]
    speed, memory, _ = rows
    assert [float(speed[f"y_value_{q}"]) for q in (20, 50, 80)] == pytest.approx([1, 2, 3])
    assert [float(memory[f"y_value_{q}"]) for q in (20, 50, 80)] == [1, 1, 1]
    assert (speed["metric_unit"], memory["metric_unit"]) == ("ms", "MB")
    assert (speed["kernel_name"], speed["kernel_operation_mode"], speed["x_name"], speed["x_value"]) == (
        "jsd", "full", "rows", "512",
    )  # fmt: skip
    assert json.loads(speed["extra_benchmark_config_str"]) == {
        "vocab": 1000,
        "remarks": [],
        "dtype": "bfloat16",
        "kd_kernels": "1.2.3",
    }
    assert (speed["gpu_name"], speed["liger_version"]) == ("a CPU", "")


def test_json(measurement, tmp_path):
    path = tmp_path / "out.json"
    report.write_json(path, [measurement], MACHINE, {"product_flops": 1e15}, "abc", {"kind": ["jsd"], "json": path})
    document = json.loads(path.read_text())
    assert document.keys() == {"schema", "timestamp", "commit", "machine", "ceilings", "arguments", "cases"}
    assert document["ceilings"] == {"product_flops": 1e15}
    assert document["machine"] == MACHINE
    assert document["arguments"] == {"kind": ["jsd"], "json": str(path)}
    [case] = document["cases"]
    assert {k: case[k] for k in ("target", "kind", "shape", "dtype", "device", "direction")} == {
        "target": "rows", "kind": "jsd", "shape": {"rows": 512, "vocab": 1000}, "dtype": "bfloat16", "device": "cpu",
        "direction": "forward+backward",
    }  # fmt: skip
    assert case["work"]["amount"] == 3 * case["memory_unit"]["bytes"] == 3_072_000
    assert case["floor"] == {"name": "floor", "seconds": {"p20": 75e-5, "median": 15e-4, "p80": 225e-5, "samples": 9}}
    ours, _, wrong, _, missing = case["providers"]
    assert ours["seconds"] == {"p20": 1e-3, "median": 2e-3, "p80": 3e-3, "samples": 9}
    assert ours["speedup_over_eager"] == pytest.approx(10)
    assert ours["speedup_over_compile"] is None
    assert ours["share_of_floor"] == pytest.approx(0.75)
    assert ours["rate"] == pytest.approx(3_072_000 / 2e-3)
    assert (wrong["status"], wrong["reason"], wrong["seconds"]) == ("wrong", "the loss is off by 1", None)
    assert missing["status"] == "missing"


def test_plot(measurement, tmp_path):
    plot = pytest.importorskip("kd_kernels.benchmark.plot", exc_type=ImportError)
    path = tmp_path / "out.svg"
    plot.save([measurement, replace(measurement, case=replace(measurement.case, backward=False))], path)
    drawn = path.read_text()
    assert "<svg" in drawn
