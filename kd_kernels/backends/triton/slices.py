"""Launches of the kernels for rows that arrive in slices of the vocabulary."""

import torch
from torch import Tensor

from kd_kernels.backends.triton.launch import ROW_BLOCK, row_options
from kd_kernels.backends.triton.slice_kernel import slice_gradient_kernel, slice_statistics_kernel, slice_sums_kernel
from kd_kernels.slice_rows import SliceStatistics


def slice_statistics(
    student: Tensor,  # (N, W)
    teacher: Tensor,  # (N, W)
    weight: Tensor | None,  # (N,)
    inverse_temperatures: tuple[float, float],
    with_entropy: bool,
) -> Tensor:
    """-> `SliceStatistics` [fields, N]."""
    student, teacher = _rows(student), _rows(teacher)
    rows, columns = student.shape
    statistics = student.new_empty((len(SliceStatistics._fields), rows), dtype=torch.float32)
    if rows:
        slice_statistics_kernel[(rows,)](
            student, teacher, statistics, statistics if weight is None else weight.float().contiguous(),
            rows, columns, student.stride(0), teacher.stride(0), *_temperatures(inverse_temperatures),
            ENTROPY=with_entropy, HAS_WEIGHT=weight is not None, BLOCK=ROW_BLOCK, **_options(),
        )  # fmt: skip
    return statistics


def slice_sums(
    student: Tensor,  # (N, W)
    teacher: Tensor,  # (N, W)
    weight: Tensor | None,  # (N,)
    family: str,
    params: tuple[float, float],
    inverse_temperatures: tuple[float, float],
    state: Tensor,  # (fields, N): `SliceState`
) -> Tensor:
    """-> sums of value and of h over the slice [2, N]."""
    student, teacher = _rows(student), _rows(teacher)
    rows, columns = student.shape
    sums = student.new_empty((2, rows), dtype=torch.float32)
    if rows:
        slice_sums_kernel[(rows,)](
            student, teacher, state.float(), sums, sums if weight is None else weight.float().contiguous(),
            rows, columns, student.stride(0), teacher.stride(0), *_temperatures(inverse_temperatures), *params,
            **flags(family, params), HAS_WEIGHT=weight is not None, BLOCK=ROW_BLOCK, **_options(),
        )  # fmt: skip
    return sums


def slice_gradient(
    student: Tensor,  # (N, W)
    teacher: Tensor,  # (N, W)
    weight: Tensor | None,  # (N,)
    family: str,
    params: tuple[float, float],
    inverse_temperatures: tuple[float, float],
    state: Tensor,  # (fields, N): `SliceState`
    factor: Tensor,  # (N,)
    out: Tensor,  # (N, W)
) -> None:
    """out = factor (h - q sum h). `out` may be `student`."""
    target = out if out.stride(1) == 1 else torch.empty(out.shape, dtype=out.dtype, device=out.device)
    student, teacher, factor = _rows(student), _rows(teacher), factor.float()
    rows, columns = student.shape
    if rows:
        slice_gradient_kernel[(rows,)](
            student, teacher, target, state.float(), factor,
            factor if weight is None else weight.float().contiguous(),
            rows, columns, student.stride(0), teacher.stride(0), target.stride(0),
            *_temperatures(inverse_temperatures), *params,
            **flags(family, params), HAS_WEIGHT=weight is not None, BLOCK=ROW_BLOCK, **_options(),
        )  # fmt: skip
    if target is not out:
        out.copy_(target)


def flags(family: str, params: tuple[float, float]) -> dict[str, object]:
    """The kernels' compile-time flags for a family with parameters."""
    return {
        "FAMILY": family,
        "FORWARD": params[0] != 0,
        "REVERSE": params[1] != 0,
        "UNIT": family == "todi" and params[0] == 1,
    }


def _temperatures(inverse: tuple[float, float]) -> tuple[float, float, float]:
    return *inverse, inverse[1] / inverse[0]


def _options() -> dict[str, int | bool]:
    return row_options("kl", amd=torch.version.hip is not None)


def _rows(x: Tensor) -> Tensor:
    return x if x.stride(1) == 1 else x.contiguous()
