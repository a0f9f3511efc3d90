"""A tiny pair of models, a text, and the command run on them."""

import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.figure import Figure
from tiny import save_model, sentence

from kd_kernels.cli import main


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Tensors this small gain nothing from more, and threads that wait for one another suffer on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rendering takes longer than all else in a run this small; test_plot.py has it."""
    monkeypatch.setattr(Figure, "savefig", lambda self, path, **_: path.touch())


@pytest.fixture(scope="session")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_model(tmp_path_factory.mktemp("teacher"), seed=1)


@pytest.fixture(scope="session")
def student(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_model(tmp_path_factory.mktemp("student"), seed=2)


@pytest.fixture(scope="session")
def dropout_student(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A student whose training draws random numbers."""
    return save_model(tmp_path_factory.mktemp("dropout"), seed=2, attention_dropout=0.2)


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("data") / "text.jsonl"
    path.write_text("".join(json.dumps({"text": sentence(45, seed)}) + "\n" for seed in range(30)))
    return str(path)


@pytest.fixture
def arguments(teacher: str, student: str, data: str, tmp_path: Path) -> Callable[..., list[str]]:
    """The command line of a small run; keywords add to it or replace what is there."""

    def build(**changes: Any) -> list[str]:
        values = {
            "teacher": teacher, "student": student, "data": data, "out": tmp_path / "run", "steps": 8, "batch_size": 4,
            "seq_len": 16, "lr": 1e-2, "warmup": 2, "save_every": 3, "eval_blocks": 4, "seed": 7,
        } | changes  # fmt: skip
        line = ["distill"]
        for name, value in values.items():
            flag = f"--{name.replace('_', '-')}"
            if value is True:
                line.append(flag)
            elif value is not None and value is not False:
                line += [flag, str(value)]
        return line

    return build


@pytest.fixture
def run(arguments: Callable[..., list[str]]) -> Callable[..., int]:
    return lambda **changes: main(arguments(**changes))


@pytest.fixture(autouse=True)
def _interruptible():
    """As in a terminal: a shell starts what runs in its background with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
