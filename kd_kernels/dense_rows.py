"""Whole rows of logits: what backends do alike around kernels of their own."""

from collections.abc import Callable

import torch
from torch import Tensor

from kd_kernels.reduction import count


def rows_contiguous(x: Tensor) -> Tensor:
    """The tensor, or a copy of it whose last dimension has no gaps."""
    return x if x.stride(-1) == 1 else x.contiguous()


# What follows, but for divergence_backward, is of GPUs: PyTorch itself adds products of all dtypes up in float32 there,
# and its allocator keeps memory.
KEPT_BYTES = None
OUTER_PRODUCT_DTYPES: set[torch.dtype] = set()


def workspace(size: int, device: torch.device) -> Tensor:
    """Memory for logits or gradients of them that are done with soon: bytes [size]."""
    return torch.empty(size, dtype=torch.uint8, device=device)


def empty_gradient(student: Tensor) -> Tensor:
    """Memory for the gradient of logits (N, V), contiguous."""
    return torch.empty(student.shape, dtype=student.dtype, device=student.device)


def divergence(
    row_losses: Callable[..., Tensor],  # of the backend
    student: Tensor,  # (N, V)
    teacher: Tensor,  # (N, V')
    weight: Tensor | None,  # (N,)
    normalizer: Tensor | None,  # ()
    family: str,
    params: list[float],
    inverse_temperatures: list[float],
    scale: float,
    columns: int,
    reduction: str,
    with_gradient: bool,
    with_entropy: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """-> loss, gradient (N, V) and entropies (2, N); what is not wanted is empty."""
    rows = student.shape[0]
    if reduction == "mean":
        normalizer = count(weight, student[:, 0]).clamp(min=1)
    gradient = empty_gradient(student if with_gradient else student[:0])
    entropy = student.new_empty((2, rows) if with_entropy else 0, dtype=torch.float32)
    value = row_losses(student, teacher, weight, None, normalizer, family, params, inverse_temperatures, scale, columns,
                       gradient, entropy)  # fmt: skip
    if reduction == "none":
        return value, gradient, entropy
    total = value.sum()
    return (total if normalizer is None else total / normalizer), gradient, entropy


def divergence_backward(
    row_losses: Callable[..., Tensor],
    gradient: Tensor,  # (N, V), to be written
    upstream: Tensor,  # (N,)
    student: Tensor,
    teacher: Tensor,
    weight: Tensor | None,
    *spec,  # from `family` to `columns`, as above
) -> Tensor:
    """-> the gradient."""
    row_losses(student, teacher, weight, upstream, None, *spec, gradient, gradient[:0])
    return gradient
