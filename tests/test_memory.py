"""Memory of large CPU gradients, kept from one call to the next."""

import re
from pathlib import Path

import pytest
import torch

import kd_kernels as kd

ROWS, VOCAB = 64, 151_936  # 39 MB of float32


@pytest.fixture(autouse=True)
def _start_and_end_empty():
    kd.release_memory()
    yield
    kd.release_memory()


@pytest.fixture(scope="module")
def logits():
    row = torch.randn(2, 1, VOCAB)
    return row.expand(2, ROWS, VOCAB)


def gradient(logits, scale=1.0):
    student = (scale * logits[0]).requires_grad_()
    kd.divergence(student, logits[1]).backward()
    return student.grad


def resident_bytes() -> int:
    return 1024 * int(re.search(r"VmRSS:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])


def test_the_next_gradient_takes_the_memory_of_the_last(logits):
    first = gradient(logits)
    where, values = first.data_ptr(), first.clone()
    del first
    again = gradient(logits)
    assert again.data_ptr() == where
    assert torch.equal(again, values)


def test_gradients_that_live_at_the_same_time_do_not_share(logits):
    one = gradient(logits)
    values = one.clone()
    other = gradient(logits, scale=2.0)
    assert torch.equal(one, values)
    assert not torch.equal(one, other)


def test_a_view_keeps_the_memory(logits):
    row = gradient(logits)[0]
    values = row.clone()
    gradient(logits, scale=2.0)
    assert torch.equal(row, values)


needs_proc = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the resident set from /proc")


@needs_proc
def test_release_memory_gives_it_back(logits):
    size = gradient(logits).nbytes
    before = resident_bytes()
    kd.release_memory()
    assert before - resident_bytes() > 0.9 * size


@needs_proc
def test_a_block_of_which_less_than_half_is_needed_is_given_back(logits):
    large = torch.randn(3 * ROWS, VOCAB)
    size = gradient([large, large]).nbytes
    before = resident_bytes()
    small = gradient(logits).nbytes
    assert before - resident_bytes() > 0.9 * (size - small)
