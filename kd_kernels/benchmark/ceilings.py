"""What a device reaches at most: the bandwidth of a copy, the rate of a matrix product."""

import torch

from kd_kernels.benchmark.timing import Spread, clock_for, interleave

_COPY_BYTES = 1 << 30
_PRODUCT = 8192
_SECONDS = 1.0


def measure(
    device: str, *, copy_bytes: int = _COPY_BYTES, product: int = _PRODUCT, seconds: float = _SECONDS
) -> dict[str, float]:
    """Medians, taken in rounds of both.

    Args:
        device: of torch.
        copy_bytes: what is copied: far more than a cache holds.
        product: rows, columns and depth of the bfloat16 product, of random numbers: zeros would cost less power.
        seconds: for all samples.

    Returns:
        copy_bytes_per_second: bytes read and bytes written. product_flops: operations per second.
    """
    source = torch.empty(copy_bytes, dtype=torch.uint8, device=device).random_()
    target = torch.empty_like(source)
    a, b = (torch.randn(product, product, device=device).bfloat16() for _ in range(2))
    out = torch.empty_like(a)
    samples = interleave(
        [lambda: target.copy_(source), lambda: torch.mm(a, b, out=out)],
        seconds=seconds, clock=clock_for(device), between=lambda: None,
    )  # fmt: skip
    copy, multiply = (Spread.of(of_one).median for of_one in samples)
    return {"copy_bytes_per_second": 2 * copy_bytes / copy, "product_flops": 2 * product**3 / multiply}


def line(ceilings: dict[str, float]) -> str:
    """For people."""
    copy, product = ceilings["copy_bytes_per_second"], ceilings["product_flops"]
    return f"copy {copy / 1e12:.2f} TB/s (read and written), bfloat16 products {product / 1e12:.0f} TFLOP/s"
