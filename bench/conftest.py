"""The size of what the suites measure, and how they do."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from kd_kernels.benchmark.case import Case
from kd_kernels.benchmark.measure import check
from kd_kernels.benchmark.report import title

ROUNDS = 10


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("kd_kernels", "cases of kd_kernels")
    group.addoption("--rows", type=int, default=64)
    group.addoption("--vocab", type=int, default=151_936)
    group.addoption("--hidden", type=int, default=128)
    group.addoption("--batch", type=int, default=256)
    group.addoption("--iterations", type=int, default=20)
    group.addoption("--dtype", choices=["float32", "bfloat16", "float16"], default="bfloat16")
    group.addoption("--device", default="cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture
def option(request: pytest.FixtureRequest) -> Callable[[str], Any]:
    return request.config.getoption


@pytest.fixture
def settings(option) -> dict:
    """What the cases of all targets have."""
    return {
        "rows": option("--rows"), "backward": True, "dtype": getattr(torch, option("--dtype")),
        "device": option("--device"),
    }  # fmt: skip


@pytest.fixture
def run(benchmark) -> Callable[[Case, str], None]:
    """Checks and times a provider of a case."""

    def run(case: Case, provider: str) -> None:
        found = case.providers([provider], ["auto"])
        if not found:
            pytest.skip(f"{provider} does not know {case.kind}")
        problem = case.make()
        outcome, call = check(case, problem, found[0])
        # A peer that is wrong gets no time, as on the command line; this library has to be right.
        if outcome.status in ("missing", "skipped") or (outcome.status == "wrong" and provider != "kd"):
            pytest.skip(f"{provider}: {outcome.reason}")
        assert outcome.status == "ok", outcome.reason
        benchmark.group = f"{title(case)}: {case.kind}"
        benchmark.extra_info["work"] = f"{case.work} {case.work_unit.removeprefix('G')}"

        def step() -> None:
            call()
            if case.device != "cpu":
                torch.cuda.synchronize(case.device)

        benchmark.pedantic(step, setup=problem.clear, rounds=ROUNDS, warmup_rounds=1)

    return run
