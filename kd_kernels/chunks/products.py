"""The matrix products of an LM head, and sums of them over chunks."""

from types import ModuleType

import torch
from torch import Tensor

from kd_kernels.reduction import sum_dtype

# Entries of a factor in reduced precision that are widened at a time where there is no product with a float32 result.
WIDENED = 1 << 19


def project(hidden: Tensor, weight: Tensor, bias: Tensor | None, gain: float, out: Tensor) -> None:
    """out = gain (hidden weight^T + bias): (C, H), (V, H), (V,) -> (C, V)."""
    if bias is not None:
        torch.addmm(bias, hidden, weight.t(), beta=gain, alpha=gain, out=out)
    elif gain != 1:
        torch.addmm(out, hidden, weight.t(), beta=0, alpha=gain, out=out)
    else:
        torch.mm(hidden, weight.t(), out=out)


class ProductSum:
    """A matrix whose blocks of rows are sums of products over chunks: gradients of weights and of hidden states.

    Products of bfloat16 and float16 accumulate in float32, and so do their sums over chunks: the result is rounded
    once, to its dtype. Where each block is one product there is no accumulator.
    """

    def __init__(self, like: Tensor, rows: int, products: torch.dtype, backend: ModuleType, *, once: bool) -> None:
        """like: of the result's shape and dtype; rows: those that get products, the rest is 0; products: their dtype;
        once: each block is written once."""
        self._backend = backend
        self._dtype = like.dtype
        self._direct = once and products == like.dtype
        dtype = like.dtype if self._direct else sum_dtype(like.dtype)
        self._sum = torch.empty(like.shape, dtype=dtype, device=like.device)
        self._sum[rows:] = 0
        self._rows, self._empty = rows, True

    def add(self, a: Tensor, b: Tensor, block: slice, *, gain: float, first: bool) -> None:
        """Adds gain a b to a block of rows; the first product of a block overwrites it."""
        self._empty = False
        out, beta = self._sum[block], 0 if first else 1
        if self._direct or a.dtype == out.dtype:
            torch.addmm(out, a, b, beta=beta, alpha=gain, out=out)
        elif out.device.type == "cuda":
            torch.addmm(out, a, b, out_dtype=out.dtype, beta=beta, alpha=gain, out=out)
        elif a.dtype in self._backend.OUTER_PRODUCT_DTYPES and a.stride(0) == 1:
            self._backend.outer_product(out, a.t(), b, gain, not first)
        else:
            b = b.to(out.dtype)
            rows = max(1, WIDENED // max(1, a.shape[1]))
            for part, narrow in zip(out.split(rows), a.split(rows), strict=True):
                part.addmm_(narrow.to(out.dtype), b, beta=beta, alpha=gain)

    def result(self) -> Tensor:
        if self._empty:  # no rows, no chunks
            self._sum[: self._rows] = 0
        return self._sum.to(self._dtype)
