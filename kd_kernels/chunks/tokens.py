"""The plan of token chunks: project some rows, run the row kernels over their logits, turn the gradient that these
write over the student's logits into gradients of the head, and go on to the next rows with the same memory."""

import torch
from torch import Tensor

from kd_kernels.chunks.gradients import HeadGradients, LogitsGradient
from kd_kernels.chunks.sides import Projection, Rows
from kd_kernels.chunks.task import Task
from kd_kernels.chunks.top_k import ListedRows
from kd_kernels.chunks.workspace import buffers, shaped
from kd_kernels.top_k import Entries


def losses(
    student: Rows | Projection,
    teacher: Rows | Projection | Entries,
    task: Task,
    chunk: int,
    gradient: HeadGradients | LogitsGradient | None,
    stats: Tensor,
) -> Tensor:
    """-> weighted losses (N,).

    Args:
        student: N rows.
        teacher: the same rows.
        task: the rest of the problem.
        chunk: rows in a chunk.
        gradient: takes the gradients of the chunks.
        stats: (S, N) to be written; (S, 0) where they are not wanted.
    """
    result = torch.empty(task.rows, dtype=task.real, device=task.device)
    sparse = isinstance(teacher, Entries)
    counted = slice(0, task.columns)
    student_buffer, teacher_buffer = buffers((student, teacher), min(chunk, task.rows), None, task)
    for begin in range(0, task.rows, chunk):
        rows = slice(begin, min(begin + chunk, task.rows))
        n = rows.stop - rows.start
        columns = slice(0, student.width)
        x = student.chunk(rows, columns, shaped(student_buffer, n, student.width))
        out = x[:0] if gradient is None else gradient.target(x, rows, columns)
        part = torch.empty((len(stats), n if stats.numel() else 0), dtype=task.real, device=task.device)
        if sparse:
            listed = ListedRows(teacher.select(rows), task, rows, with_stats=stats.numel() > 0)
            listed.take(x, counted)
            result[rows] = listed.solve(with_gradient=gradient is not None, stats=part)
            if gradient is not None:
                listed.gradient(x, counted, out)
        else:
            y = teacher.chunk(rows, slice(0, teacher.width), shaped(teacher_buffer, n, teacher.width))
            result[rows] = task.losses(x, y, rows, out, part)
        if stats.numel():
            stats[:, rows] = part
        if gradient is not None:
            gradient.take(out, x, rows, columns)
    return result
