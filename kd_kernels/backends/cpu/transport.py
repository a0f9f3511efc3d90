"""Optimal transport: Sinkhorn iterations, L1 costs, sorted distributions."""

import torch
from torch import Tensor

from kd_kernels import _core
from kd_kernels.backends.cpu.memory import empty_gradient
from kd_kernels.backends.cpu.tensors import DTYPES, address, as_real
from kd_kernels.dense_rows import rows_contiguous
from kd_kernels.reduction import sum_dtype


def sinkhorn(
    cost: Tensor,  # (B, n, m)
    a: Tensor | None,  # (B, n); None: ones
    b: Tensor | None,  # (B, m)
    eps: Tensor,  # (B,) float64
    lengths: Tensor | None,  # (B, 2)
    start: Tensor | None,  # (B, m)
    iterations: int,
    tolerance: float,  # negative: none
    value: str,
    with_plan: bool,
    with_history: bool,
) -> tuple[Tensor, ...]:
    """-> values (B,), potentials f (B, n) and g (B, m), plan (B, n, m) or [0], iterations (B,), marginal errors (B,),
    history and offsets for the backward pass, or [0]."""
    batch, n, m = cost.shape
    real = sum_dtype(cost.dtype)
    cost, a, b, start, lengths = rows_contiguous(cost), *(as_real(real, x) for x in (a, b, start)), _whole(lengths)
    eps = eps.contiguous()
    total, error = torch.empty(batch, dtype=real), torch.empty(batch, dtype=real)
    f, g = torch.empty(batch, n, dtype=real), torch.empty(batch, m, dtype=real)
    plan = torch.empty((batch, n, m) if with_plan else 0, dtype=real)
    run = torch.empty(batch, dtype=torch.int64)
    history = torch.empty((batch, iterations, n + m) if with_history else 0, dtype=real)
    offsets = torch.empty((batch, 3, n + m) if with_history else 0, dtype=torch.float64)
    _core.sinkhorn(
        *_problems(cost, a, b, eps, lengths, iterations, value), address(start), tolerance, total.data_ptr(),
        f.data_ptr(), g.data_ptr(), plan.data_ptr(), run.data_ptr(), error.data_ptr(), history.data_ptr(),
        offsets.data_ptr(), torch.get_num_threads(),
    )  # fmt: skip
    return total, f, g, plan, run, error, history, offsets


def sinkhorn_backward(
    upstream: Tensor,  # (B,)
    plan_upstream: Tensor | None,  # (B, n, m)
    cost: Tensor,
    a: Tensor | None,
    b: Tensor | None,
    eps: Tensor,
    lengths: Tensor | None,
    iterations: Tensor,  # (B,): that were run
    history: Tensor,
    offsets: Tensor,
    value: str,
    wanted: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """-> gradients of cost (B, n, m), a (B, n) and b (B, m), or [0] where not wanted."""
    batch, n, m = cost.shape
    real = sum_dtype(cost.dtype)
    upstream, plan_upstream = as_real(real, upstream), as_real(real, plan_upstream)
    cost, a, b, lengths = rows_contiguous(cost), as_real(real, a), as_real(real, b), _whole(lengths)
    eps, iterations, history, offsets = (x.contiguous() for x in (eps, iterations, history, offsets))
    of_cost = torch.empty((batch, n, m) if wanted[0] else 0, dtype=cost.dtype)
    of_a = torch.empty((batch, n) if wanted[1] else 0, dtype=real)
    of_b = torch.empty((batch, m) if wanted[2] else 0, dtype=real)
    _core.sinkhorn_backward(
        *_problems(cost, a, b, eps, lengths, history.shape[1], value), upstream.data_ptr(), address(plan_upstream),
        iterations.data_ptr(), history.data_ptr(), offsets.data_ptr(), of_cost.data_ptr(), of_a.data_ptr(),
        of_b.data_ptr(), torch.get_num_threads(),
    )  # fmt: skip
    return of_cost, of_a, of_b


def l1_cost(
    student: Tensor,  # (B, n, V)
    teacher: Tensor,  # (B, m, V')
    student_mask: Tensor | None,  # (B, n) bool
    teacher_mask: Tensor | None,  # (B, m) bool
    inverse_temperatures: list[float],
    columns: int,
    softmax: bool,
) -> tuple[Tensor, Tensor]:
    """-> costs (B, n, m), statistics of the rows (B, n + m, 2)."""
    (batch, n, _), m = student.shape, teacher.shape[1]
    real = sum_dtype(student.dtype)
    cost = torch.empty(batch, n, m, dtype=real)
    statistics = torch.zeros(batch, n + m, 2, dtype=real)  # which vectors that are no logits have not
    _run_l1(student, teacher, student_mask, teacher_mask, inverse_temperatures, columns, softmax, statistics, cost,
            None, None)  # fmt: skip
    return cost, statistics


def l1_cost_backward(
    upstream: Tensor,  # (B, n, m)
    statistics: Tensor,  # (B, n + m, 2)
    student: Tensor,
    teacher: Tensor,
    student_mask: Tensor | None,
    teacher_mask: Tensor | None,
    inverse_temperatures: list[float],
    columns: int,
    softmax: bool,
) -> Tensor:
    """-> gradient of the student's logits."""
    gradient = empty_gradient(student)
    if not gradient.numel():
        return gradient
    upstream = as_real(statistics.dtype, upstream)
    _run_l1(student, teacher, student_mask, teacher_mask, inverse_temperatures, columns, softmax, statistics, None,
            upstream, gradient)  # fmt: skip
    return gradient


def sorted_l1(
    student: Tensor,  # (N, V)
    teacher: Tensor,  # (N, V')
    factor: Tensor | None,  # (N,)
    inverse_temperatures: list[float],
    limit: int,
    with_gradient: bool,
) -> tuple[Tensor, Tensor]:
    """-> losses (N,), factor times their gradients (N, V) or [0]."""
    real = sum_dtype(student.dtype)
    student, teacher, factor = rows_contiguous(student), rows_contiguous(teacher), as_real(real, factor)
    loss = torch.empty(student.shape[0], dtype=real)
    gradient = empty_gradient(student if with_gradient else student[:0])
    _core.sorted_l1(
        student.shape[0], student.shape[1], teacher.shape[1], limit,
        student.data_ptr(), student.stride(0), DTYPES[student.dtype],
        teacher.data_ptr(), teacher.stride(0), DTYPES[teacher.dtype],
        address(factor), *inverse_temperatures, loss.data_ptr(), gradient.data_ptr(), torch.get_num_threads(),
    )  # fmt: skip
    return loss, gradient if with_gradient else gradient.reshape(0)


def _run_l1(student, teacher, student_mask, teacher_mask, inverse_temperatures, columns, softmax, statistics, cost,
            upstream, gradient) -> None:  # fmt: skip
    # Held here until the core returns: every tensor whose address it is given.
    student, teacher = rows_contiguous(student), rows_contiguous(teacher)
    student_mask, teacher_mask = (x if x is None else x.contiguous() for x in (student_mask, teacher_mask))
    statistics = statistics.contiguous()
    _core.l1_cost(
        *student.shape[:2], teacher.shape[1], columns, student.shape[2],
        student.data_ptr(), *student.stride()[:2], DTYPES[student.dtype],
        teacher.data_ptr(), *teacher.stride()[:2], DTYPES[teacher.dtype],
        address(student_mask), address(teacher_mask), *inverse_temperatures, softmax, statistics.data_ptr(),
        address(cost), address(upstream), address(gradient), torch.get_num_threads(),
    )  # fmt: skip


def _problems(cost, a, b, eps, lengths, iterations, value) -> tuple[int | bool, ...]:
    return (
        *cost.shape, cost.data_ptr(), *cost.stride()[:2], DTYPES[cost.dtype], address(a), address(b), eps.data_ptr(),
        address(lengths), iterations, value == "entropic",
    )  # fmt: skip


def _whole(lengths: Tensor | None) -> Tensor | None:
    return None if lengths is None else lengths.to(torch.int64).contiguous()
