"""Rows of logits, whole or in slices."""

import torch
from torch import Tensor

from kd_kernels import _core, dense_rows
from kd_kernels.backends.cpu.memory import empty_gradient
from kd_kernels.backends.cpu.tensors import DTYPES, address, as_real
from kd_kernels.dense_rows import rows_contiguous
from kd_kernels.reduction import sum_dtype
from kd_kernels.slice_rows import SliceStatistics

_FAMILIES, _REDUCTIONS, _SLICE_PASSES = _core.FAMILIES, _core.REDUCTIONS, _core.SLICE_PASSES

# Dtypes whose products `outer_product` adds up in float32 on this processor.
OUTER_PRODUCT_DTYPES = {torch.bfloat16} if _core.has_outer_product() else set()


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
    real = sum_dtype(student.dtype)
    rows = student.shape[0]
    loss = torch.empty(rows if reduction == "none" else (), dtype=real)
    gradient = empty_gradient(student) if with_gradient else student.new_empty(0)
    entropy = torch.empty((2, rows) if with_entropy else 0, dtype=real)
    _run(student, teacher, weight, None, normalizer, family, params, inverse_temperatures, scale, columns, reduction,
         gradient, loss, entropy)  # fmt: skip
    return loss, gradient, entropy


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
    losses = torch.empty(student.shape[0], dtype=sum_dtype(student.dtype))
    _run(student, teacher, weight, upstream, normalizer, family, params, inverse_temperatures, scale, columns, "none",
         gradient, losses, entropy)  # fmt: skip
    return losses


def outer_product(
    out: Tensor,  # (V, H) float32
    gradient: Tensor,  # (N, V)
    hidden: Tensor,  # (N, H)
    gain: float,
    add: bool,
) -> None:
    """out = gain gradient^T hidden, or out += it; torch's product of these dtypes would end with a rounding."""
    hidden = rows_contiguous(hidden)
    _core.outer_product(
        *gradient.shape, hidden.shape[1], gradient.data_ptr(), gradient.stride(0), hidden.data_ptr(), hidden.stride(0),
        out.data_ptr(), out.stride(0), gain, add, torch.get_num_threads(),
    )  # fmt: skip


def slice_statistics(
    student: Tensor,  # (N, W)
    teacher: Tensor,  # (N, W)
    weight: Tensor | None,  # (N,)
    inverse_temperatures: tuple[float, float],
    with_entropy: bool,
) -> Tensor:
    """-> `SliceStatistics` [fields, N]."""
    statistics = torch.empty(len(SliceStatistics._fields), student.shape[0], dtype=torch.float64)
    _run_slice("statistics", student, teacher, weight, inverse_temperatures, with_entropy=with_entropy,
               statistics=statistics)  # fmt: skip
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
    sums = torch.empty(2, student.shape[0], dtype=torch.float64)
    _run_slice("sums", student, teacher, weight, inverse_temperatures, family, params, state=state, sums=sums)
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
    target = out if out.stride(1) == 1 else torch.empty(out.shape, dtype=out.dtype)
    _run_slice("gradient", student, teacher, weight, inverse_temperatures, family, params, state=state, factor=factor,
               gradient=target)  # fmt: skip
    if target is not out:
        out.copy_(target)


def scale_(gradient: Tensor, factor: Tensor) -> None:
    """gradient *= factor, at no cost where the factor is 1."""
    if factor.item() != 1:
        gradient.mul_(factor)


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
    tail = torch.empty(logits.shape[0], dtype=sum_dtype(logits.dtype))
    _run_tail(logits, ids, weight, tail, inverse_temperature, columns, None, None, None)
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
    _run_tail(logits, ids, weight, tail, inverse_temperature, columns, gradient, entries, tail_factor)


def _run_tail(logits, ids, weight, tail, inverse_temperature, columns, gradient, entries, tail_factor) -> None:
    # Held here until the core returns: every tensor whose address it is given.
    logits = rows_contiguous(logits)
    real = sum_dtype(logits.dtype)
    ids, weight, tail = ids.contiguous(), as_real(real, weight), as_real(real, tail)  # a new tail is as it should be
    entries, tail_factor = as_real(real, entries), as_real(real, tail_factor)
    _core.tail_rows(
        *logits.shape[:1], columns, logits.shape[1], ids.shape[1],
        logits.data_ptr(), logits.stride(0), DTYPES[logits.dtype],
        ids.data_ptr(),
        0 if weight is None else weight.data_ptr(),
        tail.data_ptr(), inverse_temperature,
        0 if gradient is None else gradient.data_ptr(), 0 if gradient is None else gradient.stride(0),
        0 if entries is None else entries.data_ptr(),
        0 if tail_factor is None else tail_factor.data_ptr(),
        torch.get_num_threads(),
    )  # fmt: skip


def _run(student, teacher, weight, upstream, normalizer, family, params, inverse_temperatures, scale, columns,
         reduction, gradient, loss, entropy) -> None:  # fmt: skip
    # Held here until the core returns: every tensor whose address it is given.
    student, teacher = rows_contiguous(student), rows_contiguous(teacher)
    real = loss.dtype  # of row weights, upstream gradients and the normaliser, as of the sums
    weight, upstream, normalizer = as_real(real, weight), as_real(real, upstream), as_real(real, normalizer)
    rows, width = student.shape
    student_entropy, teacher_entropy = (0, 0) if not entropy.numel() else (entropy[0].data_ptr(), entropy[1].data_ptr())
    _core.divergence_rows(
        rows, columns, width,
        student.data_ptr(), student.stride(0), DTYPES[student.dtype],
        teacher.data_ptr(), teacher.stride(0), DTYPES[teacher.dtype],
        gradient.data_ptr(),  # 0 for an empty one
        0 if weight is None else weight.data_ptr(),
        0 if upstream is None else upstream.data_ptr(),
        0 if normalizer is None else normalizer.data_ptr(),
        loss.data_ptr() if reduction == "none" else 0, loss.data_ptr(),
        student_entropy, teacher_entropy,
        *inverse_temperatures, scale, _FAMILIES[family], *params, _REDUCTIONS[reduction], torch.get_num_threads(),
    )  # fmt: skip


def _run_slice(name, student, teacher, weight, inverse_temperatures, family="kl", params=(0.0, 0.0), *,
               with_entropy=False, statistics=None, state=None, sums=None, factor=None,
               gradient=None) -> None:  # fmt: skip
    student, teacher = rows_contiguous(student), rows_contiguous(teacher)
    weight = as_real(torch.float64, weight)
    rows, columns = student.shape
    _core.divergence_slice(
        _SLICE_PASSES[name], rows, columns,
        student.data_ptr(), student.stride(0), DTYPES[student.dtype],
        teacher.data_ptr(), teacher.stride(0), DTYPES[teacher.dtype],
        address(gradient), 0 if gradient is None else gradient.stride(0), address(weight),
        *inverse_temperatures, _FAMILIES[family], params[0], with_entropy,
        address(statistics), address(state), address(sums), address(factor), torch.get_num_threads(),
    )  # fmt: skip
