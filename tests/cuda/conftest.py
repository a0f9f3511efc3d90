"""The backend `cuda`: on the GPU where there is one, elsewhere its sources, built for a machine that is emulated."""

import shutil
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "native" / "emulation"))
sys.path.insert(0, str(Path(__file__).parents[1] / "transport"))

import emulated_build
from emulated_cuda import EmulatedCuda
from on_device import DeviceCuda

from kd_kernels.backends import select


@pytest.fixture(scope="session")
def emulated():
    """Functions of kd_kernels.backends.cuda on CPU tensors, under the sanitizers; or those of the real module."""
    if torch.cuda.is_available() and select.unavailable("cuda") is None:
        yield DeviceCuda()
        return
    if shutil.which("c++") is None:
        pytest.skip("needs a C++ compiler")
    cuda = EmulatedCuda(emulated_build.extension(), sanitize=True)
    yield cuda
    cuda.close()
