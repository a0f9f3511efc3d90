"""Every CUDA kernel that is shipped, on every architecture it is built for: nothing of a thread lives in memory, and
registers are those of the committed table. `python -m bench resources --write` writes the table anew.

Where a kernel came to more registers fewer of its blocks fit on a multiprocessor: that is to be seen in a change.
"""

import json
import shutil
import subprocess

import pytest

from bench import resources
from kd_kernels.backends import select
from kd_kernels.testing import cuda_binaries
from kd_kernels.testing.cuda_binaries import Instruction

needs_disassembler = pytest.mark.skipif(cuda_binaries.cuobjdump() is None, reason="there is no cuobjdump")


@pytest.fixture(scope="module")
def found():
    if select.unavailable("cuda") is not None:
        pytest.skip(select.unavailable("cuda"))
    return cuda_binaries.resources(cuda_binaries.module())


@needs_disassembler
def test_nothing_of_a_thread_is_in_memory(found):
    assert resources.spilling(found) == []


@needs_disassembler
def test_every_kernel_is_built_for_every_architecture(found):
    from kd_kernels import _cuda

    built = {f"sm_{name.removesuffix('-real')}" for name in _cuda.ARCHITECTURES.split() if name.endswith("-real")}
    assert built
    assert {(k.kernel, k.target) for k in found} == {(k.kernel, target) for k in found for target in built}


@needs_disassembler
def test_registers_are_those_of_the_table(found):
    expected = resources.committed()
    if resources.release() != expected["nvcc"]:
        pytest.skip(f"the table is of nvcc {expected['nvcc']}, the module of {resources.release()}")
    targets = {k.target for k in found}
    numbers = {
        name: {target: x for target, x in by_target.items() if target in targets}
        for name, by_target in expected["registers, shared bytes"].items()
    }
    assert json.loads(resources.table(found, ""))["registers, shared bytes"] == numbers


@needs_disassembler
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="there is no nvcc")
def test_a_spill_would_show(tmp_path):
    """Of a kernel that cannot but spill."""
    source = tmp_path / "spills.cu"
    source.write_text(
        "namespace kd { template <int n> __global__ void __maxnreg__(24) spills(const float* x, float* y) {\n"
        "  float v[n];\n#pragma unroll\n  for (int i = 0; i < n; ++i) v[i] = x[i * threadIdx.x];\n  __syncthreads();\n"
        "#pragma unroll\n  for (int i = 0; i < n; ++i) y[i * threadIdx.x] = v[i] * v[n - 1 - i];\n}\n"
        "template __global__ void spills<64>(const float*, float*); }\n"
    )
    built = tmp_path / "spills.o"
    subprocess.run(["nvcc", "-arch=sm_90a", "-c", "-o", built, source], check=True)
    (kernel,) = resources.spilling(cuda_binaries.resources(built))
    assert (kernel.kernel, kernel.target, kernel.registers) == ("spills<64>", "sm_90a", 24)
    (code,) = cuda_binaries.code(built, "sm_90a")
    assert {at.name.split(".")[0] for at in code.instructions} >= {"STL", "LDL", "EXIT"}


def test_loops():
    """One in another, and one of its own that ends twice."""
    at = [
        Instruction(0x00, "", "MOV", "R1, R2"),
        Instruction(0x10, "", "FADD", "R1, R1, R2"),
        Instruction(0x20, "", "MUFU.EX2", "R1, R1"),
        Instruction(0x30, "@P0", "BRA", "0x20"),
        Instruction(0x40, "@P1", "BRA", "0x10"),
        Instruction(0x50, "", "FMUL", "R1, R1, R2"),
        Instruction(0x60, "@P0", "BRA", "0x50"),
        Instruction(0x70, "@!P1", "BRA", "0x50"),
        Instruction(0x80, "", "EXIT", ""),
    ]
    bodies = [[hex(x.address) for x in body] for body in cuda_binaries.loops(at)]
    assert bodies == [["0x10", "0x40"], ["0x20", "0x30"], ["0x50", "0x60", "0x70"]]
