import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import kd_kernels as kd
from kd_kernels.benchmark import providers
from kd_kernels.benchmark.case import Provider
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


def test_a_wrong_provider_fails_the_command(monkeypatch, capsys):
    planted = Provider("planted", lambda: lambda student, teacher: 2 * kd.divergence(student, teacher))
    monkeypatch.setattr(providers, "of_rows", lambda *args: [planted])
    assert main([*TINY, "--kind", "forward_kl"]) == 1
    assert "planted      WRONG: the loss is off by" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--kind", "jsd,nope"], "must be of forward_kl"),
        (["--dtype", "int8"], "must be of bf16"),
        (["--providers", "x"], "must be of kd, eager"),
        (["--rows", "0"], "must be positive"),
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


def test_the_suite_of_pytest_benchmark():
    suite = Path(__file__).parents[2] / "bench/bench_rows.py"
    command = [sys.executable, "-m", "pytest", suite, "--rows=9", "--vocab=50", "-k", "not compile", "-q"]
    environment = {
        k: v for k, v in os.environ.items() if not k.startswith("PYTEST_XDIST")
    }  # it switches benchmarks off
    run = subprocess.run([*command, "--benchmark-enable"], capture_output=True, text=True, check=False, env=environment)
    assert run.returncode == 0, run.stdout
    assert "rows: rows 9, vocab 50, bfloat16, forward+backward, cpu: jsd" in run.stdout


def test_the_package_does_not_import_it():
    code = "import sys, kd_kernels; sys.exit('kd_kernels.benchmark' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
