"""L1 costs between rows, and their gradient."""

import math

import torch
from torch import Tensor

from kd_kernels import _cuda
from kd_kernels.backends.cuda.call import DTYPES, address, where
from kd_kernels.dense_rows import rows_contiguous

# Threads that the columns of a problem are shared by at least, where there are so many: two blocks of 256 to every
# multiprocessor of a large GPU. The same on all, so that the sums are.
_THREADS = 264 * 256
# Entries of G that exist at a time, 40 MiB: what is written by one kernel and read by the next stays in the cache of a
# large GPU.
_GAINS = 10 << 20


def l1_cost(
    student: Tensor,  # (B, n, V)
    teacher: Tensor,  # (B, m, V')
    student_mask: Tensor | None,  # (B, n) bool
    teacher_mask: Tensor | None,  # (B, m) bool
    inverse_temperatures: list[float],
    columns: int,
    softmax: bool,
) -> tuple[Tensor, Tensor]:
    """-> costs (B, n, m), statistics (B, n + m, 2)."""
    (batch, n, _), m = student.shape, teacher.shape[1]
    new = torch.empty if softmax else torch.zeros  # vectors that are no logits have no statistics
    statistics = new(batch, n + m, 2, device=student.device)
    cost = torch.empty(batch, n, m, device=student.device)
    cut = _cuda.l1_cut(n, m, columns, _THREADS)
    sums = torch.empty(batch * cut.sums, device=student.device)
    problems, held = _problems(
        student, teacher, student_mask, teacher_mask, inverse_temperatures, columns, softmax, statistics
    )
    _cuda.l1_cost(*where(student), problems, cut, sums.data_ptr(), cost.data_ptr())
    del held
    return cost, statistics


def l1_cost_backward(
    upstream: Tensor,  # (B, n, m)
    statistics: Tensor,
    student: Tensor,
    teacher: Tensor,
    student_mask: Tensor | None,
    teacher_mask: Tensor | None,
    inverse_temperatures: list[float],
    columns: int,
    softmax: bool,
) -> Tensor:
    """-> gradient of the student (B, n, V)."""
    gradient = torch.empty(student.shape, dtype=student.dtype, device=student.device)
    if not gradient.numel():
        return gradient
    batch, n, width = student.shape
    rows = _cuda.L1_GAIN_ROWS
    tiles = batch * -(-n // rows)
    # Without softmax G is the gradient, and needs no place of its own.
    at_a_time = max(1, min(tiles, _GAINS // (rows * columns))) if softmax else tiles
    lines = at_a_time * rows if softmax else 0
    gains = torch.empty(lines, columns, device=student.device)
    sums = torch.empty(lines, -(-columns // _cuda.L1_GAIN_COLUMNS), device=student.device)
    problems, held = _problems(
        student, teacher, student_mask, teacher_mask, inverse_temperatures, columns, softmax, statistics
    )
    for first in range(0, tiles, at_a_time):
        _cuda.l1_cost_backward(
            *where(student), problems, upstream.data_ptr(), *upstream.stride(), inverse_temperatures[0],
            gradient.data_ptr(), width, first, min(at_a_time, tiles - first), gains.data_ptr(), sums.data_ptr(),
        )  # fmt: skip
    del held
    return gradient


def _problems(
    student, teacher, student_mask, teacher_mask, inverse_temperatures, columns, softmax, statistics
) -> tuple[_cuda.L1Problems, tuple[Tensor | None, ...]]:
    """What the kernels are told of both sides, and what has to live until they were called."""
    student, teacher = map(rows_contiguous, (student, teacher))
    student_mask, teacher_mask = (x if x is None else x.contiguous() for x in (student_mask, teacher_mask))
    student_rate, teacher_rate = (x / math.log(2) for x in inverse_temperatures)
    problems = _cuda.L1Problems(
        *student.shape[:2], teacher.shape[1], columns, DTYPES[student.dtype],
        student.data_ptr(), *student.stride()[:2], address(student_mask), student_rate,
        teacher.data_ptr(), *teacher.stride()[:2], address(teacher_mask), teacher_rate, softmax, statistics.data_ptr(),
    )  # fmt: skip
    return problems, (student, teacher, student_mask, teacher_mask, statistics)
