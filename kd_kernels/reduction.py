"""How losses of rows become one number."""

import torch
from torch import Tensor


def sum_dtype(dtype: torch.dtype) -> torch.dtype:
    """What sums of numbers of this dtype are accumulated in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def count(weight: Tensor | None, rows: Tensor) -> Tensor:
    """Number of rows of non-zero weight, 0-d int64; `rows` is any tensor with one entry per row."""
    return torch.ones_like(rows, dtype=torch.int64).sum() if weight is None else (weight != 0).sum()


def reduce(values: Tensor, weight: Tensor | None, reduction: str, normalizer: float | Tensor | None) -> Tensor:
    """Weighted values `[N]`, their sum, or their sum over `normalizer` (None: over the number of rows that count).

    A row of weight 0 contributes 0 whatever its value is.
    """
    weighted = values if weight is None else torch.where(weight != 0, weight * values, 0)
    if reduction == "none":
        return weighted
    if reduction == "sum":
        return weighted.sum()
    return weighted.sum() / (count(weight, values).clamp(min=1) if normalizer is None else normalizer)
