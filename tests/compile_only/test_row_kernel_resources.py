"""Every shipped launch configuration, compiled for GPUs that need not be there: nothing may live on the stack.

A spilled register is a trip to memory per entry, in a kernel whose whole time is memory traffic.
"""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

pytest.importorskip("triton")
TARGETS = ["sm_80", "sm_90", "sm_100", "gfx942"]


def survey(target: str) -> list[dict]:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}  # the compiler, not the interpreter
    command = [sys.executable, "-m", "kd_kernels.testing.triton_resources", target]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    return [json.loads(line) for line in run.stdout.splitlines()]


@pytest.fixture(scope="module")
def surveys():
    with ThreadPoolExecutor(2) as pool:
        futures = {target: pool.submit(survey, target) for target in TARGETS}
        yield futures


@pytest.mark.parametrize("target", TARGETS)
def test_nothing_on_the_stack(surveys, target):
    kernels = surveys[target].result()
    assert len({k["family"] for k in kernels}) == 10
    assert {k["dtype"] for k in kernels} == {"bfloat16", "float16", "float32"}
    assert [k for k in kernels if k["stack"] != 0] == []
