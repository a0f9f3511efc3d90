"""Settings of the whole suite. Without a GPU Triton's kernels run in its interpreter, which must be chosen before they
are imported."""

import hashlib
import importlib.util
import os

import pytest
import torch

if "PYTEST_XDIST_WORKER" in os.environ:  # one of a process for every processor
    os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that tests start
    torch.set_num_threads(1)

GPU = torch.cuda.is_available()
if not GPU:
    os.environ["TRITON_INTERPRET"] = "1"

import interpreter  # noqa: E402
from hypothesis import settings  # noqa: E402

if not GPU and importlib.util.find_spec("triton"):
    interpreter.quicken()

settings.register_profile("default", deadline=None, derandomize=True, print_blob=True)
settings.register_profile("fuzz", deadline=None, max_examples=2000)
settings.load_profile("default")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """A process that is done takes tests of one that is not: the last ones, planted bugs, are the longest."""
    if config.getoption("dist") != "load":
        return None
    from xdist.scheduler import WorkStealingScheduling

    return WorkStealingScheduling(config, log)


@pytest.fixture(autouse=True)
def _seed(request):
    """A seed of its own for every test, whatever the order they run in."""
    torch.manual_seed(int(hashlib.sha256(request.node.nodeid.encode()).hexdigest(), 16) % 2**31)


@pytest.fixture
def nan_in_fresh_memory():
    """torch.empty returns NaN, so that an output that was not written shows."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.use_deterministic_algorithms(False)
