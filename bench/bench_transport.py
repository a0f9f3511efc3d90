"""Value and gradient of losses of optimal transport under pytest-benchmark, which keeps runs and compares them:

    pytest bench/bench_transport.py --dtype float32 --benchmark-enable --benchmark-autosave [-k "sinkd and kd"]

`kd-kernels bench transport` compares providers better: it interleaves their samples and measures memory.
"""

import pytest

from kd_kernels.benchmark import PROVIDERS
from kd_kernels.benchmark.transport import SinkDCase, SinkhornCase, SortedL1Case


@pytest.mark.parametrize("provider", PROVIDERS)
def test_sinkd(run, settings, option, provider: str) -> None:
    run(SinkDCase(**settings, vocab=option("--vocab"), iterations=option("--iterations")), provider)


@pytest.mark.parametrize("provider", PROVIDERS)
def test_sinkhorn(run, settings, option, provider: str) -> None:
    run(SinkhornCase(**settings, batch=option("--batch"), iterations=option("--iterations")), provider)


@pytest.mark.parametrize("provider", PROVIDERS)
def test_sorted_l1(run, settings, option, provider: str) -> None:
    run(SortedL1Case(**settings, vocab=option("--vocab")), provider)
