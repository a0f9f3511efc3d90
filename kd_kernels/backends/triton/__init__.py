"""The ops as Triton kernels, for any GPU Triton compiles to; on CPU tensors where Triton's interpreter is on."""

import math

import torch
from torch import Tensor

from kd_kernels import dense_rows
from kd_kernels.backends.triton.l1_cost import l1_cost, l1_cost_backward
from kd_kernels.backends.triton.launch import (
    LISTED_BLOCK,
    ROW_BLOCK,
    SCALE_BLOCK,
    TAIL_BLOCK,
    row_options,
    tail_options,
)
from kd_kernels.backends.triton.row_kernel import divergence_row_kernel, scale_kernel
from kd_kernels.backends.triton.sinkhorn import sinkhorn, sinkhorn_backward
from kd_kernels.backends.triton.slices import slice_gradient, slice_statistics, slice_sums
from kd_kernels.backends.triton.sorted_l1 import sorted_l1
from kd_kernels.backends.triton.tail_kernel import (
    NO_ID,
    listed_gradient_kernel,
    tail_gradient_kernel,
    tail_logits_kernel,
)
from kd_kernels.dense_rows import KEPT_BYTES, OUTER_PRODUCT_DTYPES, empty_gradient, rows_contiguous, workspace
from kd_kernels.divergences import Kernel

__all__ = [
    "KEPT_BYTES", "OUTER_PRODUCT_DTYPES", "divergence", "divergence_backward", "empty_gradient", "l1_cost",
    "l1_cost_backward", "row_losses", "scale_", "sinkhorn", "sinkhorn_backward", "slice_gradient", "slice_statistics",
    "slice_sums", "sorted_l1", "specialise", "tail_gradient", "tail_logits", "workspace",
]  # fmt: skip

# Leading bits of a float32 that came from the dtype, rounded up to a pair: what AKL's bisection has to go through.
_KEY_BITS = {torch.bfloat16: 16, torch.float16: 20, torch.float32: 32}


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
) -> Tensor:
    """-> weighted losses (N,)."""
    losses = student.new_empty(student.shape[0], dtype=torch.float32)
    _launch(student, teacher, weight, upstream, normalizer, family, params, inverse_temperatures, scale, columns,
            gradient, losses, entropy)  # fmt: skip
    return losses


def scale_(gradient: Tensor, factor: Tensor) -> None:
    """gradient *= factor; the factor stays on the device."""
    n = gradient.numel()
    if n:
        scale_kernel[(-(-n // SCALE_BLOCK),)](gradient, factor.float(), n, BLOCK=SCALE_BLOCK)


def tail_logits(
    logits: Tensor,  # (N, V)
    ids: Tensor,  # (N, K): distinct within a row, or outside [0, columns) for an empty slot
    weight: Tensor | None,  # (N,): a row of weight 0 is not read, and gives 0
    inverse_temperature: float,
    columns: int,
) -> Tensor:  # (N,)
    """log sum exp(z / T) over the entries outside the list; -inf where there are none.

    NaN where one of them is NaN or +inf.
    """
    tail = logits.new_empty(logits.shape[0], dtype=torch.float32)
    if not tail.numel():
        return tail
    logits = rows_contiguous(logits)
    ascending = torch.where((ids >= 0) & (ids < columns), ids, NO_ID.value).to(torch.int32).sort(-1).values
    tail_logits_kernel[(tail.numel(),)](
        logits, ascending, _single(weight, tail), tail,
        columns, ids.shape[1], logits.stride(0), inverse_temperature, inverse_temperature / math.log(2),
        HAS_WEIGHT=weight is not None, BLOCK=TAIL_BLOCK, **tail_options(amd=torch.version.hip is not None),
    )  # fmt: skip
    return tail


def tail_gradient(
    logits: Tensor,  # (N, V)
    ids: Tensor,  # (N, K)
    weight: Tensor | None,  # (N,): of a row of weight 0 only this is read
    entries: Tensor,  # (N, K)
    tail: Tensor,  # (N,): of tail_logits
    tail_factor: Tensor,  # (N,)
    inverse_temperature: float,
    columns: int,
    gradient: Tensor,  # (N, V), of the logits' dtype; may be the logits
) -> None:
    """gradient[n, ids[n, k]] = entries[n, k], and tail_factor exp(z / T - tail) outside the list; 0 from `columns` on.

    0 outside the list where the factor is 0 or the tail -inf; all 0 in a row of weight 0.
    """
    (rows, width), slots = logits.shape, ids.shape[1]
    if rows == 0:
        return
    logits = rows_contiguous(logits)
    tail = _single(tail, tail)
    weights = _single(weight, tail)
    options = {"HAS_WEIGHT": weight is not None, **tail_options(amd=torch.version.hip is not None)}
    tail_gradient_kernel[(rows,)](
        logits, weights, tail, _single(tail_factor, tail), gradient,
        columns, width, logits.stride(0), gradient.stride(0), inverse_temperature, inverse_temperature / math.log(2),
        BLOCK=TAIL_BLOCK, **options,
    )  # fmt: skip
    if slots:
        listed_gradient_kernel[(rows,)](
            ids.contiguous(), weights, _single(entries, tail), gradient, columns, slots, gradient.stride(0),
            BLOCK=LISTED_BLOCK, **options,
        )  # fmt: skip


def specialise(family: str, params: list[float], teacher_dtype: torch.dtype) -> dict[str, object]:
    """The kernel's compile-time flags, and its curvature argument, for a family with parameters."""
    a, b = params
    return {
        "curvature": Kernel(family, tuple(params)).curvature,
        "FAMILY": family,
        "FORWARD": family != "tvd" and not (family == "kl" and a == 0),
        "REVERSE": family == "akl" or (family == "kl" and b != 0),
        "UNIT": family == "todi" and a == 1,
        "KEY_BITS": _KEY_BITS[teacher_dtype] if family == "akl" else 0,
    }


def _launch(student, teacher, weight, upstream, normalizer, family, params, inverse_temperatures, scale, columns,
            gradient, value, entropy) -> None:  # fmt: skip
    rows, width = student.shape
    if rows == 0:
        return
    student, teacher = rows_contiguous(student), rows_contiguous(teacher)
    divergence_row_kernel[(rows,)](
        student, teacher, gradient, value, entropy,
        _single(weight, value), _single(upstream, value), _single(normalizer, value),
        rows, columns, width, student.stride(0), teacher.stride(0),
        *inverse_temperatures, scale, *params,
        **specialise(family, params, teacher.dtype),
        GRADIENT=gradient.numel() > 0, ENTROPY=entropy.numel() > 0,
        HAS_WEIGHT=weight is not None, HAS_UPSTREAM=upstream is not None, HAS_NORMALIZER=normalizer is not None,
        BLOCK=ROW_BLOCK, **row_options(family, amd=torch.version.hip is not None),
    )  # fmt: skip


def _single(x: Tensor | None, unused: Tensor) -> Tensor:
    """The tensor in float32; any tensor where the kernel will not look."""
    return unused if x is None else x.to(torch.float32).contiguous()
