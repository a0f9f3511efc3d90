"""Runs that are cut short, and what must come of them."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny import metrics, result, weights


class Crash(BaseException):
    """Death at a point of our choice."""


def crash() -> None:
    raise Crash


def on_call(monkeypatch: pytest.MonkeyPatch, owner: object, name: str, number: int, act: Callable[[], None]) -> None:
    """Lets `act` happen at the number-th call of a function, before it."""
    original, calls = getattr(owner, name), iter(range(1, 10**6))

    def wrapper(*args, **kwargs):
        if next(calls) == number:
            act()
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, wrapper)


def assert_same(out: Path, whole: Path) -> None:
    assert metrics(out) == metrics(whole)
    assert result(out) == result(whole)
    assert weights(out) == weights(whole)
    assert files_of(out) == files_of(whole)


def files_of(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def metrics_so_far(out: Path) -> list[str]:
    return (out / "metrics.jsonl").read_text().splitlines()


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 100
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
