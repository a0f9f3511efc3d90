import pytest
import torch

import kd_kernels as kd
from kd_kernels.benchmark import eager, memory
from kd_kernels.benchmark.memory import RESOLUTION, extra_peak_bytes, shortage

SIZE = 64 << 20


def allocate(n: int = SIZE) -> torch.Tensor:
    return torch.ones(n, dtype=torch.uint8)


@pytest.fixture(autouse=True)
def _measurable():
    if extra_peak_bytes(lambda: None, "cpu") is None:
        pytest.skip("this system does not tell")


def test_what_is_freed_before_the_end_counts():
    assert extra_peak_bytes(lambda: allocate().max(), "cpu") == pytest.approx(SIZE, abs=RESOLUTION)


def test_what_is_never_held_at_once_counts_once():
    def call():
        for _ in range(3):
            allocate()

    assert extra_peak_bytes(call, "cpu") == pytest.approx(SIZE, abs=RESOLUTION)


def test_what_was_there_before_does_not_count():
    held = allocate()
    allocate(2 * SIZE)  # an earlier, higher peak
    assert extra_peak_bytes(lambda: held.add_(1), "cpu") == pytest.approx(0, abs=RESOLUTION)


def test_blocks_that_the_allocator_kept_count():
    def call():
        return [allocate(1 << 16) for _ in range(SIZE >> 16)]

    blocks = call()
    del blocks[::2]  # holes, which stay resident until they are given back
    assert extra_peak_bytes(call, "cpu") == pytest.approx(SIZE, rel=0.05)


@pytest.mark.parametrize("kind", kd.KINDS)
def test_what_eager_forms_hold(kind):
    student, teacher = torch.randn(2, 64, 1 << 17 | 1)  # larger than what the allocator keeps
    student.requires_grad_()

    def step():
        student.grad = None
        eager.loss(kd.KINDS[kind](), student, teacher).backward()

    step()
    student.grad = None
    tensors = extra_peak_bytes(step, "cpu") / student.nbytes
    # Small ones, a mask of a quarter of the size among them, may lie in memory that the process had before.
    assert eager.PEAK_TENSORS[kind] - 1.3 < tensors + 2 < eager.PEAK_TENSORS[kind] + 0.3


def test_shortage(monkeypatch):
    assert shortage(1, "cpu") is None
    assert "GB are free" in shortage(1 << 60, "cpu")
    monkeypatch.setattr(memory, "_MEMORY", memory.Path("/no/such/file"))
    assert shortage(1 << 60, "cpu") is None
