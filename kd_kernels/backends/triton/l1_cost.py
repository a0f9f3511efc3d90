"""Launches of the kernels of L1 costs."""

import math

import torch
from torch import Tensor

from kd_kernels.backends.triton.l1_cost_kernel import (
    l1_cost_kernel,
    l1_gain_kernel,
    l1_gradient_kernel,
    l1_statistics_kernel,
)
from kd_kernels.backends.triton.launch import (
    L1_BLOCK,
    L1_CHUNK,
    L1_GAIN,
    L1_PROGRAMS,
    L1_STEP,
    L1_TILE,
    l1_options,
    tail_options,
)
from kd_kernels.dense_rows import rows_contiguous

# Entries of G that exist at a time, 64 MiB.
_GAINS = 1 << 24


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
    student, teacher = rows_contiguous(student), rows_contiguous(teacher)
    (batch, n, _), m = student.shape, teacher.shape[1]
    device = student.device
    statistics = torch.zeros(batch, n + m, 2, device=device)
    if softmax:
        for x, mask, rate, first in zip(
            (student, teacher), (student_mask, teacher_mask), _rates(inverse_temperatures), (0, n), strict=True
        ):
            if batch * x.shape[1]:
                l1_statistics_kernel[(batch * x.shape[1],)](
                    x, _bytes(mask, x), statistics[:, first:], x.shape[1], n + m, columns, *x.stride()[:2], rate,
                    HAS_MASK=mask is not None, BLOCK=L1_BLOCK, **_options(),
                )  # fmt: skip
    tiles = -(-n // L1_TILE) * -(-m // L1_TILE)
    if batch * tiles == 0:
        return torch.zeros(batch, n, m, device=device), statistics
    # How the vocabulary is cut depends on nothing but the problem: neither on the batch nor on the GPU.
    splits = min(-(-L1_PROGRAMS // tiles), -(-columns // L1_CHUNK))
    width = -(-columns // (splits * L1_STEP)) * L1_STEP
    partials = torch.empty(splits, batch, n, m, device=device)
    l1_cost_kernel[(splits * batch * tiles,)](
        student, teacher, _bytes(student_mask, student), _bytes(teacher_mask, teacher), statistics, partials,
        batch, n, m, columns, width, *student.stride()[:2], *teacher.stride()[:2], *_rates(inverse_temperatures),
        SOFTMAX=softmax, HAS_STUDENT_MASK=student_mask is not None, HAS_TEACHER_MASK=teacher_mask is not None,
        TILE=L1_TILE, STEP=L1_STEP, CHUNK=L1_CHUNK, **_l1_options(),
    )  # fmt: skip
    return partials[0] if splits == 1 else partials.sum(0), statistics


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
    student, teacher = rows_contiguous(student), rows_contiguous(teacher)
    (batch, n, width), m = student.shape, teacher.shape[1]
    rows, block_columns, step = L1_GAIN
    span = columns if softmax else width  # without softmax G is the gradient, of all columns
    blocks = -(-span // block_columns)
    tiles = batch * -(-n // rows)
    at_a_time = max(1, _GAINS // (rows * span)) if softmax else tiles
    masks = _bytes(student_mask, student), _bytes(teacher_mask, teacher)
    student_rate, teacher_rate = _rates(inverse_temperatures)
    for first in range(0, tiles, at_a_time):
        count = min(at_a_time, tiles - first)
        gains = torch.empty(count * rows, span, device=student.device) if softmax else gradient
        sums = torch.empty(count * rows if softmax else 0, blocks, device=student.device)
        l1_gain_kernel[(count * blocks,)](
            upstream, student, teacher, *masks, statistics, gains, sums, first, n, m, columns, span,
            *upstream.stride(), *student.stride()[:2], *teacher.stride()[:2], student_rate, teacher_rate,
            SOFTMAX=softmax, HAS_STUDENT_MASK=student_mask is not None, HAS_TEACHER_MASK=teacher_mask is not None,
            ROWS=rows, COLUMNS=block_columns, STEP=step, **_l1_options(),
        )  # fmt: skip
        if softmax:
            l1_gradient_kernel[(count * rows * -(-width // L1_BLOCK),)](
                student, masks[0], statistics, gains, sums.sum(1), gradient, first, n, m, columns, width,
                *student.stride()[:2], inverse_temperatures[0], student_rate,
                HAS_STUDENT_MASK=student_mask is not None, ROWS=rows, BLOCK=L1_BLOCK, **_options(),
            )  # fmt: skip
    return gradient


def _rates(inverse_temperatures: list[float]) -> list[float]:
    return [x / math.log(2) for x in inverse_temperatures]


def _bytes(mask: Tensor | None, unused: Tensor) -> Tensor:
    """The mask as bytes; any tensor where the kernel will not look."""
    return unused if mask is None else mask.contiguous().view(torch.uint8)


def _options() -> dict[str, int | bool]:
    return tail_options(amd=torch.version.hip is not None)


def _l1_options() -> dict[str, int | bool]:
    return l1_options(amd=torch.version.hip is not None)
