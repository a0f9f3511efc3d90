import pytest
import torch

from kd_kernels.benchmark import ceilings


def test_both_rates_come_from_what_is_timed(monkeypatch):
    """On a machine whose copies take 2 s and products 4 s."""

    def interleave(calls, *, seconds, clock, between):
        for call in calls:
            call()
        return [[2.0] * 5, [4.0] * 5]

    monkeypatch.setattr(ceilings, "interleave", interleave)
    found = ceilings.measure("cpu", copy_bytes=1000, product=10)
    assert found == {"copy_bytes_per_second": 1000.0, "product_flops": 500.0}


def test_measured_here():
    found = ceilings.measure("cpu", copy_bytes=1 << 20, product=64, seconds=0.0)
    assert 1e7 < found["copy_bytes_per_second"] < 1e13
    assert found["product_flops"] > 0


def test_line():
    text = ceilings.line({"copy_bytes_per_second": 4.2e12, "product_flops": 7.9e14})
    assert text == "copy 4.20 TB/s (read and written), bfloat16 products 790 TFLOP/s"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_measured_on_a_gpu():
    found = ceilings.measure("cuda")
    assert found["copy_bytes_per_second"] > 1e11
    assert found["product_flops"] > 1e12
