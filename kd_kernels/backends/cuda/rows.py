"""Divergences of rows of logits."""

import torch
from torch import Tensor

from kd_kernels import _cuda, dense_rows
from kd_kernels.backends.cuda.call import DTYPES, address, where
from kd_kernels.dense_rows import empty_gradient, rows_contiguous

_FAMILIES = _cuda.FAMILIES


def divergence(*arguments) -> tuple[Tensor, Tensor, Tensor]:
    return dense_rows.divergence(row_losses, *arguments)


def divergence_backward(upstream: Tensor, student: Tensor, *arguments) -> Tensor:
    return dense_rows.divergence_backward(row_losses, empty_gradient(student), upstream, student, *arguments)


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
    student, teacher = rows_contiguous(student), rows_contiguous(teacher)
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


def row_plan(
    columns: int, dtype: torch.dtype, family: str, capability: int, *, blocks: int | None = None
) -> dict[str, int]:
    """How rows of so many columns are laid over a device of compute capability `capability`, 10 major + minor.

    blocks: that share a row on chip, 0 where it is streamed; threads of a block; slice: vectors of 16 bytes of either
    side in a block; keeps: whether h has a place beside them; shared_bytes of a block (csrc/cuda/row_plan.h).
    """
    plan = _cuda.row_plan(columns, DTYPES[dtype], _FAMILIES[family], capability, -1 if blocks is None else blocks)
    return {name: getattr(plan, name) for name in ("blocks", "threads", "slice", "keeps", "shared_bytes")}


def scale_(gradient: Tensor, factor: Tensor) -> None:
    """gradient *= factor; the factor stays on the device. A factor of 1 costs one read of it."""
    factor = factor.to(torch.float32)
    _cuda.scale(*where(gradient), gradient.data_ptr(), gradient.numel(), DTYPES[gradient.dtype], factor.data_ptr())


def _single(x: Tensor | None) -> Tensor | None:
    """Contiguous, in float32."""
    return None if x is None else x.to(torch.float32).contiguous()
