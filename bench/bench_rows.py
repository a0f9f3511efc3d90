"""Loss and gradient of logits x logits under pytest-benchmark, which keeps runs and compares them:

    pytest bench/bench_rows.py --benchmark-enable --benchmark-autosave [--benchmark-compare] [-k "jsd and kd"]

`kd-kernels bench` compares providers better: it interleaves their samples, measures memory and knows the floor.
"""

import pytest
import torch

from kd_kernels.benchmark import PROVIDERS
from kd_kernels.benchmark.measure import check
from kd_kernels.benchmark.report import title
from kd_kernels.benchmark.rows import RowsCase
from kd_kernels.divergences import KINDS

ROUNDS = 10


@pytest.fixture
def case(request: pytest.FixtureRequest, kind: str) -> RowsCase:
    option = request.config.getoption
    return RowsCase(
        divergence=KINDS[kind](), rows=option("--rows"), vocab=option("--vocab"), device=option("--device"),
        dtype=getattr(torch, option("--dtype")), backward=True,
    )  # fmt: skip


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("kind", KINDS)
def test_rows(benchmark, case: RowsCase, provider: str) -> None:
    found = case.providers([provider], ["auto"])
    if not found:
        pytest.skip(f"{provider} does not know {case.kind}")
    problem = case.make()
    outcome, call = check(case, problem, found[0])
    if outcome.status == "missing":
        pytest.skip(f"{provider}: {outcome.reason}")
    assert outcome.status == "ok", outcome.reason
    benchmark.group = f"{title(case)}: {case.kind}"
    benchmark.extra_info["bytes_moved"] = case.bytes_moved

    def step() -> None:
        call()
        if case.device != "cpu":
            torch.cuda.synchronize(case.device)

    benchmark.pedantic(step, setup=problem.clear, rounds=ROUNDS, warmup_rounds=1)
