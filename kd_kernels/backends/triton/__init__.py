"""The ops as Triton kernels, for any GPU Triton compiles to; on CPU tensors where Triton's interpreter is on."""

import torch
from torch import Tensor

from kd_kernels.backends.triton.launch import ROW_BLOCK, SCALE_BLOCK, row_options
from kd_kernels.backends.triton.row_kernel import divergence_row_kernel, scale_kernel
from kd_kernels.backends.triton.slices import slice_gradient, slice_statistics, slice_sums
from kd_kernels.divergences import Kernel
from kd_kernels.reduction import count

__all__ = [
    "divergence", "divergence_backward", "scale_", "slice_gradient", "slice_statistics", "slice_sums", "specialise",
]  # fmt: skip

# Leading bits of a float32 that came from the dtype, rounded up to a pair: what AKL's bisection has to go through.
_KEY_BITS = {torch.bfloat16: 16, torch.float16: 20, torch.float32: 32}


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
    value = student.new_empty(rows, dtype=torch.float32)
    gradient = torch.empty(student.shape if with_gradient else 0, dtype=student.dtype, device=student.device)
    entropy = value.new_empty((2, rows) if with_entropy else 0)
    _launch(student, teacher, weight, None, normalizer, family, params, inverse_temperatures, scale, columns, gradient,
            value, entropy)  # fmt: skip
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
    gradient = torch.empty(student.shape, dtype=student.dtype, device=student.device)
    value = student.new_empty(student.shape[0], dtype=torch.float32)
    _launch(student, teacher, weight, upstream, None, family, params, inverse_temperatures, scale, columns, gradient,
            value, value[:0])  # fmt: skip
    return gradient


def scale_(gradient: Tensor, factor: Tensor) -> None:
    """gradient *= factor; the factor stays on the device."""
    n = gradient.numel()
    if n:
        scale_kernel[(-(-n // SCALE_BLOCK),)](gradient, factor.float(), n, BLOCK=SCALE_BLOCK)


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
    if student.stride(1) != 1:
        student = student.contiguous()
    if teacher.stride(1) != 1:
        teacher = teacher.contiguous()
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
