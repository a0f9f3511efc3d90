import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import kd_kernels as kd
from kd_kernels.benchmark.case import Provider
from kd_kernels.benchmark.rows import RowsCase
from kd_kernels.cli import main

TINY = ["bench", "--tiny", "--providers", "kd,eager", "--seconds", "0.01"]


def test_table_and_files(tmp_path, capsys):
    out = {kind: tmp_path / f"out.{kind}" for kind in ("json", "csv", "svg")}
    files = ["--json", str(out["json"]), "--csv", str(out["csv"]), "--plot", str(out["svg"])]
    status = main([*TINY, "--kind", "jsd,tvd", "--dtype", "fp32", "--dtype", "bf16", "--direction", "both", *files])
    printed = capsys.readouterr().out
    assert status == 0
    assert printed.count("jsd              kd-cpu") == 4
    assert "rows: rows 4, vocab 128, float32, forward, cpu" in printed
    document = json.loads(out["json"].read_text())
    assert [(c["dtype"], c["direction"], c["kind"]) for c in document["cases"]] == [
        (dtype, direction, kind)
        for dtype in ("float32", "bfloat16")
        for direction in ("forward", "forward+backward")
        for kind in ("jsd", "tvd")
    ]
    assert document["machine"]["threads"] == torch.get_num_threads()
    assert all(path.stat().st_size for path in out.values())


def test_heads(tmp_path, capsys):
    path = tmp_path / "out.json"
    options = ["--hidden", "6", "--teacher-hidden", "9", "--masked", "0.25", "--frozen-head", "--memory-budget", "1MB"]
    assert (
        main([TINY[0], "heads", *TINY[1:], "--kind", "jsd,tvd", "--dtype", "fp32", *options, "--json", str(path)]) == 0
    )
    printed = capsys.readouterr().out
    title = (
        "heads: rows 4, vocab 128, hidden 6, teacher hidden 9, float32, forward+backward, cpu, masked 0.25, frozen head"
    )
    assert title in printed
    assert printed.count("products") > 2
    cases = json.loads(path.read_text())["cases"]
    assert [[p["name"] for p in case["providers"] if p["status"] == "ok"] for case in cases] == [
        ["kd-cpu", "eager"]
    ] * 2
    assert all(0 < case["planned_bytes"] < 1e6 for case in cases)


@pytest.mark.parametrize("target", ["rows", "heads"])
def test_sweeps_vary_one_size_each(target, tmp_path):
    out = {kind: tmp_path / f"out.{kind}" for kind in ("json", "csv", "svg")}
    files = [
        argument for kind, path in out.items() for argument in (f"--{'plot' if kind == 'svg' else kind}", str(path))
    ]
    sweeps = ["--sweep", "rows=2,5", "--sweep", "vocab=20,30"]
    assert main([TINY[0], target, *TINY[1:], "--kind", "forward_kl", *sweeps, *files]) == 0
    shapes = [case["shape"] for case in json.loads(out["json"].read_text())["cases"]]
    assert [(shape["rows"], shape["vocab"]) for shape in shapes] == [(2, 128), (5, 128), (4, 20), (4, 30)]
    with out["csv"].open() as file:
        axes = [(row["x_name"], row["x_value"]) for row in csv.DictReader(file) if row["kernel_provider"] == "eager"]
    assert axes == [("rows", "2"), ("rows", "5"), ("vocab", "20"), ("vocab", "30")]
    assert "<svg" in out["svg"].read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--hidden", "8"], "--hidden is for the target heads, got rows"),
        (["--sweep", "hidden=8,9"], "--hidden is for the target heads, got rows"),
        (["heads", "--near"], "--near is for the target rows, got heads"),
        (["--eps", "0.2"], "--eps is for the target transport, got rows"),
        (["--kind", "jsd,nope"], "--kind must be of forward_kl"),
        (["transport", "--kind", "jsd"], "--kind must be of sinkd, sinkhorn, sorted_l1 for transport, got 'jsd'"),
        (
            ["transport", "--kind", "sinkhorn", "--sweep", "vocab=8,9"],
            "--sweep must be of batch, rows, iterations for sinkhorn, got vocab",
        ),
    ],
)
def test_what_the_target_does_not_know(arguments, message, capsys):
    assert main([*TINY[:1], *arguments, *TINY[1:]]) == 2
    assert message in capsys.readouterr().err


def test_a_wrong_provider_fails_the_command(monkeypatch, capsys):
    planted = Provider("planted", lambda: lambda student, teacher: 2 * kd.divergence(student, teacher))
    monkeypatch.setattr(RowsCase, "providers", lambda *args: [planted])
    assert main([*TINY, "--kind", "forward_kl"]) == 1
    assert "planted      WRONG: the loss is off by" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dtype", "int8"], "must be of bf16"),
        (["--providers", "x"], "must be of kd, eager"),
        (["--rows", "0"], "must be positive"),
        (["--masked", "1"], "must be at least 0 and below 1"),
        (["--memory-budget", "6x"], "must be a size in bytes such as 600MB"),
        (["--sweep", "rows"], "invalid"),
        (["--sweep", "depth=1"], "must be SIZE=A,B,... with a size of rows, vocab, hidden, batch, iterations"),
        (["--vocab", "8", "--preset", "qwen"], "not allowed with"),
        (["--json", "/no/such/directory/out.json"], "is not a directory"),
        (["--device", "xpu"], "must be cpu or cuda"),
        (["nothing"], "invalid choice"),
    ],
)
def test_bad_arguments(arguments, message, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["bench", *arguments])
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there(capsys):
    assert main([*TINY, "--device", "cuda"]) == 2
    assert "--device cuda: this PyTorch finds no GPU" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("target", "sizes"),
    [
        ("rows", "rows 9, vocab 50"),
        ("heads", "rows 9, vocab 50, hidden 128, teacher hidden 128"),
        ("transport", "batch 3, rows 9, iterations 20"),
    ],
)
def test_the_suite_of_pytest_benchmark(target, sizes):
    suite = Path(__file__).parents[2] / f"bench/bench_{target}.py"
    options = ["--rows=9", "--vocab=50", *["--batch=3"] * (target == "transport")]
    quick = "not compile and not liger and not trl"
    command = [sys.executable, "-m", "pytest", suite, *options, "-k", quick, "-q"]
    environment = {
        k: v for k, v in os.environ.items() if not k.startswith("PYTEST_XDIST")
    }  # it switches benchmarks off
    run = subprocess.run([*command, "--benchmark-enable"], capture_output=True, text=True, check=False, env=environment)
    assert run.returncode == 0, run.stdout
    assert f"{target}: {sizes}, bfloat16, forward+backward, cpu" in run.stdout


def test_the_package_does_not_import_it():
    code = "import sys, kd_kernels; sys.exit('kd_kernels.benchmark' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
