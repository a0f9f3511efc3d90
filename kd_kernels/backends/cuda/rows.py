"""Divergences of rows of logits."""

from dataclasses import dataclass

import torch
from torch import Tensor

from kd_kernels import _cuda
from kd_kernels.backends.cuda.call import DTYPES, address, where
from kd_kernels.reduction import count

_FAMILIES = _cuda.FAMILIES

# torch itself adds such products up in float32, and its allocator keeps memory.
OUTER_PRODUCT_DTYPES: set[torch.dtype] = set()
KEPT_BYTES = None


def divergence(
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
    upstream: Tensor,  # (N,)
    student: Tensor,
    teacher: Tensor,
    weight: Tensor | None,
    family: str,
    params: list[float],
    inverse_temperatures: list[float],
    scale: float,
    columns: int,
) -> Tensor:
    gradient = empty_gradient(student)
    row_losses(student, teacher, weight, upstream, None, family, params, inverse_temperatures, scale, columns, gradient,
               gradient[:0])  # fmt: skip
    return gradient


def row_losses(
    student: Tensor,
    teacher: Tensor,
    weight: Tensor | None,
    upstream: Tensor | None,
    normalizer: Tensor | None,
    family: str,
    params: list[float],
    inverse_temperatures: list[float],
    scale: float,
    columns: int,
    gradient: Tensor,  # (N, V) contiguous: to be written; may be `student` itself; empty: not wanted
    entropy: Tensor,  # (2, N) likewise
    *,
    blocks: int | None = None,  # that share a row on chip, a power of 2 up to 8; 0: rows are streamed; None: what suits
) -> Tensor:
    """-> weighted losses (N,)."""
    losses = student.new_empty(student.shape[0], dtype=torch.float32)
    # Held here until the kernel is in the stream, which keeps the order of what is done with their memory.
    if student.stride(1) != 1:
        student = student.contiguous()
    if teacher.stride(1) != 1:
        teacher = teacher.contiguous()
    weight, upstream, normalizer = _single(weight), _single(upstream), _single(normalizer)
    rows, width = student.shape
    major, minor = torch.cuda.get_device_capability(student.device)
    _cuda.divergence_rows(
        *where(student), 10 * major + minor, -1 if blocks is None else blocks,
        rows, columns, width, DTYPES[student.dtype],
        student.data_ptr(), student.stride(0), teacher.data_ptr(), teacher.stride(0), gradient.data_ptr(),
        address(weight), address(upstream), address(normalizer), losses.data_ptr(),
        *((entropy[0].data_ptr(), entropy[1].data_ptr()) if entropy.numel() else (0, 0)),
        *inverse_temperatures, scale, _FAMILIES[family], *params,
    )  # fmt: skip
    return losses


@dataclass(frozen=True)
class RowPlan:
    """How a row is laid over a device: csrc/cuda/row_plan.h."""

    blocks: int  # that share it on chip; 0: it is streamed
    threads: int  # of a block
    slice: int  # vectors of 16 bytes of either side in a block
    keeps: bool  # h has a place beside the logits
    shared_bytes: int  # of a block


def row_plan(columns: int, dtype: torch.dtype, family: str, capability: int, *, blocks: int | None = None) -> RowPlan:
    """For rows of so many columns, on a device of compute capability `capability`, 10 major + minor."""
    plan = _cuda.row_plan(columns, DTYPES[dtype], _FAMILIES[family], capability, -1 if blocks is None else blocks)
    return RowPlan(plan.blocks, plan.threads, plan.slice, plan.keeps, plan.shared_bytes)


def workspace(size: int, device: torch.device) -> Tensor:
    """Memory for logits or gradients of them that are done with soon: bytes [size]."""
    return torch.empty(size, dtype=torch.uint8, device=device)


def empty_gradient(student: Tensor) -> Tensor:
    """Memory for the gradient of logits (N, V), contiguous."""
    return torch.empty(student.shape, dtype=student.dtype, device=student.device)


def scale_(gradient: Tensor, factor: Tensor) -> None:
    """gradient *= factor; the factor stays on the device. A factor of 1 costs one read of it."""
    factor = factor.to(torch.float32)
    _cuda.scale(*where(gradient), gradient.data_ptr(), gradient.numel(), DTYPES[gradient.dtype], factor.data_ptr())


def _single(x: Tensor | None) -> Tensor | None:
    """Contiguous, in float32."""
    return None if x is None else x.to(torch.float32).contiguous()
