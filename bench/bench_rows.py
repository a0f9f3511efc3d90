"""Loss and gradient of logits x logits under pytest-benchmark, which keeps runs and compares them:

    pytest bench/bench_rows.py --benchmark-enable --benchmark-autosave [--benchmark-compare] [-k "jsd and kd"]

`kd-kernels bench` compares providers better: it interleaves their samples, measures memory and knows the floor.
"""

import pytest

from kd_kernels.benchmark import PROVIDERS
from kd_kernels.benchmark.rows import RowsCase
from kd_kernels.divergences import KINDS


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("kind", KINDS)
def test_rows(run, settings, option, kind: str, provider: str) -> None:
    run(RowsCase(**settings, divergence=KINDS[kind](), vocab=option("--vocab")), provider)
