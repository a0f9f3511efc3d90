"""Plausible mistakes, planted one at a time in a copy of the sources: a few small inputs show every one of them."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import chunk_bugs
import cpu_bugs
import cuda_l1_bugs
import cuda_row_bugs
import cuda_sinkhorn_bugs
import pytest
import triton_bugs
from bugs import files, kinds

import kd_kernels
from kd_kernels.backends import select

HERE = Path(__file__).parent
CSRC = HERE.parents[1] / "csrc"
CUDA_BUGS = [cuda_l1_bugs, cuda_row_bugs, cuda_sinkhorn_bugs]
HALVES = 2  # of the bugs of the core, for two processors


def missed(bugs, folder, script, *arguments, **options):
    """What is wrong in the bugs that drew no complaint."""
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(Path(kd_kernels.__file__).parent, folder / "kd_kernels", ignore=ignore)
    shutil.copytree(CSRC, folder / "csrc")
    environment = os.environ | {
        "PYTHONPATH": f"{folder}{os.pathsep}{HERE.parent}", "PYTHONDONTWRITEBYTECODE": "1", "TRITON_INTERPRET": "1",
        "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "",
    }  # fmt: skip
    command = [sys.executable, str(HERE / script), *map(str, arguments)]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, **options)
    assert run.returncode == 0, run.stderr[-2000:]
    return [bug.why for bug, noticed in zip(bugs, json.loads(run.stdout), strict=True) if noticed is None]


needs_compiler = pytest.mark.skipif(shutil.which("c++") is None, reason="needs a C++ compiler")
needs_triton = pytest.mark.skipif(select.unavailable("triton") is not None, reason=str(select.unavailable("triton")))


@needs_triton
@pytest.mark.parametrize("file", files(triton_bugs.BUGS))
def test_bugs_in_triton_kernels_are_noticed(file, tmp_path):
    bugs = [bug for bug in triton_bugs.BUGS if bug.file == file]
    assert missed(bugs, tmp_path, "check_python.py", "triton", file) == []


@needs_triton
@pytest.mark.parametrize("kind", kinds(triton_bugs.BUGS))
def test_nothing_is_noticed_in_triton_kernels_without_bugs(kind, tmp_path):
    assert missed([], tmp_path, "check_python.py", "triton", kind) == []


@pytest.mark.parametrize("file", files(chunk_bugs.BUGS))
def test_bugs_in_chunks_are_noticed(file, tmp_path):
    bugs = [bug for bug in chunk_bugs.BUGS if bug.file == file]
    assert missed(bugs, tmp_path, "check_python.py", "chunks", file) == []


def test_nothing_is_noticed_in_chunks_without_bugs(tmp_path):
    assert missed([], tmp_path, "check_python.py", "chunks", *kinds(chunk_bugs.BUGS)) == []


@needs_compiler
@pytest.mark.parametrize("half", range(HALVES))
def test_bugs_in_the_native_core_are_noticed(half, tmp_path):
    from kd_kernels import _core

    avx2 = int(_core.best_simd()) >= int(_core.Simd.avx2)
    processor = {"avx2": avx2, "avx512_bf16": _core.has_outer_product()}
    bugs = cpu_bugs.bugs_for(processor)[half::HALVES]
    assert missed(bugs, tmp_path, "check_cpu.py", half, HALVES, input=json.dumps(processor)) == []


@needs_compiler
@pytest.mark.parametrize("bugs", CUDA_BUGS, ids=lambda bugs: bugs.__name__)
def test_bugs_in_cuda_kernels_are_noticed(bugs, tmp_path):
    assert missed(bugs.BUGS, tmp_path, "check_cuda.py", bugs.__name__) == []
