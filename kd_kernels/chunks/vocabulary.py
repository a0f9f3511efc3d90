"""The plan of vocabulary chunks: all rows against a slice of the vocabulary at a time, in a pass for the statistics of
the rows, one for the moments of the kinds that need them, and one for the gradient. Every pass projects again."""

from collections.abc import Iterator

from torch import Tensor

from kd_kernels.chunks.gradients import HeadGradients, LogitsGradient
from kd_kernels.chunks.sides import Projection, Rows
from kd_kernels.chunks.slices import SlicedRows
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
    """-> weighted losses (N,). Arguments as for token chunks, `chunk` columns at a time."""
    student_buffer, teacher_buffer = buffers((student, teacher), task.rows, min(chunk, task.columns), task)
    slices = _Slices(student, student_buffer, task, chunk)
    if isinstance(teacher, Entries):
        return _sparse(slices, teacher, task, gradient, stats)
    return _dense(slices, _Slices(teacher, teacher_buffer, task, chunk), task, gradient, stats)


class _Slices:
    """The slices of one side, each in the same memory."""

    def __init__(self, side: Rows | Projection, buffer: Tensor, task: Task, chunk: int) -> None:
        self._side, self._buffer, self._task, self._chunk = side, buffer, task, chunk
        self.dtype = side.dtype

    def __iter__(self) -> Iterator[tuple[slice, Tensor]]:
        columns = self._task.columns
        for begin in range(0, columns, self._chunk):
            part = slice(begin, min(begin + self._chunk, columns))
            buffer = shaped(self._buffer, self._task.rows, part.stop - begin)
            yield part, self._side.chunk(slice(0, self._task.rows), part, buffer)


def _dense(
    student: _Slices, teacher: _Slices, task: Task, gradient: HeadGradients | LogitsGradient | None, stats: Tensor
) -> Tensor:
    rows = SlicedRows(
        task.rows, task.family, tuple(task.params), task.inverse_temperatures, task.scale, task.weight, task.backend,
        stats.numel() > 0, student.dtype, task.device,
    )  # fmt: skip
    for (_, x), (_, y) in zip(student, teacher, strict=True):
        rows.statistics(x, y)
    rows.normalise()
    while rows.needs_selection:
        for _, y in teacher:
            rows.select(y)
    if rows.needs_sums:
        for (_, x), (_, y) in zip(student, teacher, strict=True):
            rows.sums(x, y)
    result, entropy = rows.finish()
    if entropy is not None:
        stats.copy_(entropy)
    if gradient is not None:
        for (columns, x), (_, y) in zip(student, teacher, strict=True):
            out = gradient.target(x, slice(0, task.rows), columns)
            rows.gradient(x, y, out, task.upstream, task.normalizer)
            gradient.take(out, x, slice(0, task.rows), columns)
    return result


def _sparse(
    student: _Slices, teacher: Entries, task: Task, gradient: HeadGradients | LogitsGradient | None, stats: Tensor
) -> Tensor:
    everything = slice(0, task.rows)
    rows = ListedRows(teacher, task, everything, with_stats=stats.numel() > 0)
    for columns, x in student:
        rows.take(x, columns)
    result = rows.solve(with_gradient=gradient is not None, stats=stats)
    if gradient is not None:
        for columns, x in student:
            out = gradient.target(x, everything, columns)
            rows.gradient(x, columns, out)
            gradient.take(out, x, everything, columns)
    return result
