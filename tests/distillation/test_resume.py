"""A run that was cut short and resumed is the run that was not."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from interrupted import Crash, assert_same, crash, metrics_so_far, on_call, wait_for
from tiny import metrics, result, weights
from transformers import LlamaForCausalLM

from kd_kernels.distillation import files, journal, loop, objective
from kd_kernels.distillation import run as run_module

STEPS = 12


@pytest.fixture
def whole(run, dropout_student, tmp_path) -> Path:
    """An uninterrupted run, whose steps draw random numbers."""
    out = tmp_path / "whole"
    assert run(out=out, student=dropout_student, steps=STEPS, eval_every=5) == 0
    return out


POINTS = {
    "in the first evaluation": (loop.Journal, "write", 1),
    "before the first checkpoint": (objective.Distillation, "__call__", 2),
    "after a checkpoint": (objective.Distillation, "__call__", 5),
    "between step and metrics": (loop.Journal, "write", 6),
    "between metrics and checkpoint": (loop.Journal, "save", 2),
    "while a checkpoint is written": (journal, "save_file", 2),
    "before a checkpoint is in place": (files.os, "replace", 3),
    "after the last step": (loop.Journal, "save", 4),
    "before the student is written": (run_module, "replace_folder", 1),
    "while the student is written": (LlamaForCausalLM, "save_pretrained", 1),
    "before the result is written": (run_module, "write_json", 1),
}


@pytest.mark.parametrize("point", POINTS)
def test_a_crash_loses_nothing(run, dropout_student, whole, tmp_path, monkeypatch, point):
    changes = {"student": dropout_student, "steps": STEPS, "eval_every": 5}
    with monkeypatch.context() as patch:
        on_call(patch, *POINTS[point], crash)
        with pytest.raises(Crash):
            run(**changes)
    assert run(**changes, resume=True) == 0
    assert_same(tmp_path / "run", whole)


def test_kill_9_loses_nothing(arguments, run, dropout_student, whole, tmp_path):
    changes = {"student": dropout_student, "steps": STEPS, "eval_every": 5}
    out = tmp_path / "run"
    slow = (
        "import time, torch\n"
        "torch.set_num_threads(1)\n"
        "from kd_kernels.distillation.objective import Distillation as L\n"
        "call = L.__call__\n"
        "L.__call__ = lambda *args: (time.sleep(0.1), call(*args))[1]\n"
        "from kd_kernels.cli import main\n"
    )
    process = subprocess.Popen([sys.executable, "-c", f"{slow}main({arguments(**changes)!r})"])
    wait_for(lambda: (out / "metrics.jsonl").exists() and len(metrics_so_far(out)) >= 6)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (out / "result.json").exists()
    assert run(**changes, resume=True) == 0
    assert_same(out, whole)


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_finishes_the_step_and_saves(
    run, dropout_student, whole, tmp_path, monkeypatch, capsys, signum, status
):
    changes = {"student": dropout_student, "steps": STEPS, "eval_every": 5}
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        on_call(patch, objective.Distillation, "__call__", 5, lambda: signal.raise_signal(signum))
        assert run(**changes) == status
    assert "stopped and saved after step 5 of 12; the same command with --resume goes on" in capsys.readouterr().err
    assert metrics(out)[-1]["step"] == 5
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler

    with monkeypatch.context() as patch:
        on_call(patch, objective.Distillation, "__call__", STEPS - 5 + 1, crash)  # 7 steps are left, no more
        assert run(**changes, resume=True) == 0
    assert_same(out, whole)


def test_a_second_signal_acts_at_once(run, monkeypatch, capsys):
    def twice() -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    on_call(monkeypatch, objective.Distillation, "__call__", 5, twice)
    assert run() == 130
    assert capsys.readouterr().err.endswith("kd-kernels: interrupted\n")


def test_resuming_a_finished_run_changes_nothing(run, dropout_student, whole, tmp_path):
    before = (whole / "metrics.jsonl").read_bytes(), weights(whole), result(whole)
    assert run(out=whole, student=dropout_student, steps=STEPS, eval_every=5, resume=True) == 0
    assert ((whole / "metrics.jsonl").read_bytes(), weights(whole), result(whole)) == before


def test_resume_begins_where_nothing_was(run, tmp_path):
    assert run(resume=True) == 0
    assert result(tmp_path / "run")


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"steps": 9}, "--steps was 8, is 9"),
        ({"seed": 1, "lr": 0.02}, "--lr was 0.01, is 0.02; --seed was 7, is 1"),
        ({"kind": "jsd", "beta": 0.2}, "--kind was forward_kl, is jsd; --beta was None, is 0.2"),
    ],
)
def test_resume_refuses_other_settings(run, capsys, changes, difference):
    assert run() == 0
    capsys.readouterr()
    assert run(**changes, resume=True) == 2
    assert f": {difference}\n" in capsys.readouterr().err


def test_resume_refuses_another_text_and_allows_what_changes_nothing(run, data, tmp_path, capsys):
    path = tmp_path / "text.jsonl"
    path.write_text(Path(data).read_text())
    assert run(data=path) == 0
    assert run(data=path, resume=True, save_every=5) == 0
    path.write_text(Path(data).read_text() + json.dumps({"text": "w1 w2 w3"}) + "\n")
    assert run(data=path, resume=True) == 2
    assert "the text of --data is another" in capsys.readouterr().err


def test_resume_tells_of_another_environment(run, tmp_path, capsys):
    assert run(threads=1) == 0
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    config["environment"]["torch"] = "1.0"
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    capsys.readouterr()
    assert run(threads=2, resume=True) == 0
    told = capsys.readouterr().err
    assert f"torch was 1.0, is {torch.__version__}: the last digits may differ" in told
    assert "threads was 1, is 2: the last digits may differ" in told


def test_metrics_that_were_cut_are_noticed(run, tmp_path, capsys):
    assert run() == 0
    (tmp_path / "run" / "metrics.jsonl").write_text("")
    assert run(resume=True) == 2
    assert "metrics.jsonl is shorter than it was at the checkpoint" in capsys.readouterr().err
