"""`kd-kernels compare`: several methods side by side."""

import csv
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from interrupted import wait_for
from matplotlib.figure import Figure
from tiny import metrics, result

from kd_kernels.cli import main
from kd_kernels.distillation import comparison

NAMES = ("forward_kl", "f_distill:variant=rkl,sample_top_k=20", "todi:scale_t2")
FOLDERS = ("forward_kl", "f_distill-variant-rkl-sample_top_k-20", "todi-scale_t2")


@pytest.fixture
def line(teacher, student, data, tmp_path):
    """The command line of a small comparison."""

    def build(*names: str, **changes: object) -> list[str]:
        values = {
            "teacher": teacher, "student": student, "data": data, "seq_len": 16, "batch_size": 4, "steps": 6,
            "lr": 1e-2, "warmup": 2, "eval_blocks": 4, "out": tmp_path / "compare", "cache_dir": tmp_path / "cache",
        } | changes  # fmt: skip
        flags = [(f"--{name.replace('_', '-')}", value) for name, value in values.items()]
        return ["compare", *names, *(part for flag, v in flags for part in ([flag] if v is True else [flag, str(v)]))]

    return build


@pytest.fixture
def in_this_process(monkeypatch):
    """Runs that start no interpreter of their own."""
    monkeypatch.setattr(comparison, "run", lambda line: main(line))


def test_one_table_of_runs_from_the_same_start(line, in_this_process, tmp_path, capsys):
    assert main(line(*NAMES)) == 0
    out = tmp_path / "compare"
    found = json.loads((out / "comparison.json").read_text())
    assert tuple(found["runs"]) == NAMES
    for name, folder in zip(NAMES, FOLDERS, strict=True):
        run, numbers = result(out / folder), found["runs"][name]
        settings = json.loads((out / folder / "config.json").read_text())["settings"]
        assert settings["scale_t2"] == (name == "todi:scale_t2")
        assert run["before"] == found["before"]
        assert all(numbers[column] == run["after"][column] for column in ("cross_entropy", "forward_kl", "reverse_kl"))
        records = [json.loads(x) for x in (out / folder / "metrics.jsonl").read_text().splitlines()]
        steps = sorted(r["seconds"] for r in records if "loss" in r)
        assert len(steps) == 6
        assert steps[2] <= numbers["seconds_per_step"] <= steps[3]
        assert numbers["peak_mb"] == max(r.get("peak_rss_mb", 0) for r in records)

    with open(out / "comparison.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row.pop("run") for row in rows] == list(NAMES)
    assert [{k: float(v) for k, v in row.items()} for row in rows] == list(found["runs"].values())

    table = capsys.readouterr().out.splitlines()[-6:]
    assert table[0].split() == [
        "held-out",
        "text,",
        "nats/token",
        "cross-entropy",
        "KL(p,",
        "q)",
        "KL(q,",
        "p)",
        "s/step",
        "peak",
        "MiB",
    ]
    assert table[1].startswith("(before)")
    assert table[-1].startswith("(teacher)")
    kls = [float(row.split()[2]) for row in table[2:-1]]
    assert kls == sorted(kls)
    assert float(table[1].split()[1]) == pytest.approx(found["before"]["cross_entropy"], rel=1e-3)


def test_the_picture_has_every_run_and_number(line, in_this_process, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, path, **_: (drawn.append(figure), path.touch()))
    assert main(line("forward_kl", "reverse_kl")) == 0
    found = json.loads((tmp_path / "compare" / "comparison.json").read_text())["runs"]
    panels = drawn[-1].axes
    for axes, (name, title) in zip(panels, comparison.COLUMNS.items(), strict=True):
        assert axes.get_xlabel().startswith(title)
        assert [bar.get_width() for bar in axes.patches] == [run[name] for run in found.values()]


def test_a_comparison_goes_on_where_it_was(line, in_this_process, tmp_path, capsys):
    assert main(line("forward_kl")) == 0
    before = metrics(tmp_path / "compare" / "forward_kl")
    assert main(line("forward_kl", "jsd")) == 2
    assert "forward_kl ended with status 2" in capsys.readouterr().err
    assert main(line("forward_kl", "jsd:beta=0.1", resume=True)) == 0
    assert metrics(tmp_path / "compare" / "forward_kl") == before
    assert set(json.loads((tmp_path / "compare" / "comparison.json").read_text())["runs"]) == {
        "forward_kl", "jsd:beta=0.1",
    }  # fmt: skip


def test_runs_are_processes_that_a_signal_stops(line, tmp_path):
    out = tmp_path / "compare"
    command = [sys.executable, "-m", "kd_kernels", *line("forward_kl", "todi", steps=2000, threads=1)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    wait_for(lambda: (out / "forward_kl" / "metrics.jsonl").exists() and len(metrics(out / "forward_kl")) >= 4)
    process.send_signal(signal.SIGINT)
    told = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert told.endswith("compare: stopped; the same command with --resume goes on\n")
    done = metrics(out / "forward_kl")[-1]["step"]
    assert f"stopped and saved after step {done} of 2000" in told
    assert not (out / "todi").exists()


@pytest.mark.parametrize(
    ("names", "complaint"),
    [
        (["forward_kl", "f_distill:variant=x"], "f_distill:variant=x: --variant must be one of kl, rkl, js"),
        (["forward_kl", "uld"], "uld: its student has a tokenizer of its own, and tokens that do not compare"),
        (["forward_kl", "gkd:beta"], "gkd:beta: argument --beta: expected one argument"),
        (["forward_kl", "gkd:foo=1"], "gkd:foo=1: unrecognized arguments: --foo=1"),
        (["forward_kl", "best"], "best: argument --kind: invalid choice: 'best'"),
        (["gkd", "gkd"], "gkd is there twice"),
    ],
    ids=lambda x: None if isinstance(x, str) else x[-1],
)
def test_mistakes_are_told_before_anything_runs(line, tmp_path, capsys, names, complaint):
    assert main(line(*names)) == 2
    (told,) = capsys.readouterr().err.splitlines()
    assert complaint in told
    assert not (tmp_path / "compare").exists()


def test_a_run_that_fails_ends_the_comparison(line, in_this_process, tmp_path, capsys):
    assert main(line("forward_kl", data=Path("/nowhere"))) == 2
    assert capsys.readouterr().err.splitlines()[-1] == "kd-kernels: forward_kl ended with status 2"
    assert not (tmp_path / "compare" / "comparison.json").exists()
