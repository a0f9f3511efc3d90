"""Loss and gradient of hidden states and LM heads under pytest-benchmark, which keeps runs and compares them:

    pytest bench/bench_heads.py --benchmark-enable --benchmark-autosave [--benchmark-compare] [-k "jsd and kd"]

`kd-kernels bench heads` compares providers better: it interleaves their samples, measures memory and knows the floor.
"""

import pytest

from kd_kernels.benchmark import PROVIDERS
from kd_kernels.benchmark.heads import HeadsCase
from kd_kernels.divergences import KINDS


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("kind", KINDS)
def test_heads(run, settings, option, kind: str, provider: str) -> None:
    width = option("--hidden")
    case = HeadsCase(**settings, divergence=KINDS[kind](), vocab=option("--vocab"), hidden=width, teacher_hidden=width)
    run(case, provider)
