"""The backend `cuda` where there is no GPU: its sources, built for a machine that is emulated."""

import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "native" / "emulation"))

import emulated_build
from emulated_cuda import EmulatedCuda


@pytest.fixture(scope="session")
def emulated():
    """Functions of kd_kernels.backends.cuda on CPU tensors, under the sanitizers."""
    if shutil.which("c++") is None:
        pytest.skip("needs a C++ compiler")
    cuda = EmulatedCuda(emulated_build.extension(), sanitize=True)
    yield cuda
    cuda.close()
