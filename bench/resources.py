"""Registers and memory of every CUDA kernel, as the compiler reports them of the built module."""

import json
from collections import defaultdict
from pathlib import Path

from bench.committed import ROOT, keep
from kd_kernels.testing import cuda_binaries
from kd_kernels.testing.cuda_binaries import Resources

TABLE = ROOT / "tests" / "compile_only" / "cuda_resources.json"


def run(*, write: bool) -> int:
    """Prints what is wrong; 1 where anything is."""
    file = cuda_binaries.module()
    if file is None:
        print("kd_kernels._cuda was not built")
        return 1
    found = cuda_binaries.resources(file)
    for kernel in spilling(found):
        print(f"{kernel.kernel} on {kernel.target}: {kernel.stack} bytes of stack, {kernel.local} of local memory")
    return int(bool(spilling(found))) | keep(TABLE, table(found, release()), write=write)


def release() -> str:
    """Of the compiler the module was built with: "13.0"."""
    from kd_kernels import _cuda

    return f"{_cuda.RUNTIME_VERSION // 1000}.{_cuda.RUNTIME_VERSION % 1000 // 10}"


def spilling(found: list[Resources]) -> list[Resources]:
    """Kernels that keep something of a thread in memory."""
    return [kernel for kernel in found if kernel.stack or kernel.local]


def table(found: list[Resources], nvcc: str) -> str:
    """Of every kernel, by architecture, registers of a thread and bytes of shared memory that every block takes; a line
    for each, so that a change shows in a diff."""
    kernels = defaultdict(dict)
    for kernel in found:
        kernels[kernel.kernel][kernel.target] = [kernel.registers, kernel.shared]
    lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(numbers)}" for name, numbers in kernels.items())
    return f'{{\n "nvcc": {json.dumps(nvcc)},\n "registers, shared bytes": {{\n{lines}\n }}\n}}\n'


def committed(path: Path = TABLE) -> dict[str, object]:
    return json.loads(path.read_text())
