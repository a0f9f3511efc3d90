"""Every shipped launch configuration, compiled for GPUs that need not be there: nothing may live on the stack.

A spilled register is a trip to memory per entry, in a kernel whose whole time is memory traffic.
"""

import json
import os
import subprocess
import sys

import pytest

pytest.importorskip("triton")


TRANSPORT = {
    "sinkhorn_start", "sinkhorn", "sinkhorn_value", "sinkhorn_turns", "sinkhorn_gain", "sinkhorn_backward",
    "sinkhorn_mass_gradient", "sinkhorn_gradient", "l1_statistics", "l1_cost", "l1_gain", "l1_gradient",
}  # fmt: skip


@pytest.mark.parametrize("target", ["sm_80", "sm_90", "sm_100", "gfx942"])
def test_nothing_on_the_stack(target):
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}  # the compiler, not the interpreter
    command = [sys.executable, "-m", "kd_kernels.testing.triton_resources", target]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    kernels = [json.loads(line) for line in run.stdout.splitlines()]
    assert len({k["family"] for k in kernels if k["kernel"] == "row"}) == 10
    assert {k["kernel"] for k in kernels} == {
        "row",
        "tail_logits",
        "tail_gradient",
        "listed_gradient",
        "slice_statistics",
        "slice_sums",
        "slice_gradient",
        *TRANSPORT,
    }
    assert {k["dtype"] for k in kernels} == {"bfloat16", "float16", "float32"}
    assert [k for k in kernels if k["stack"] != 0] == []
