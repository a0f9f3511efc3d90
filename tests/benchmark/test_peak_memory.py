import pytest
import torch

from kd_kernels.benchmark.memory import RESOLUTION, extra_peak_bytes

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
