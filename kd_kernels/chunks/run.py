"""A loss over chunks from start to end: what the op does."""

import torch
from torch import Tensor

from kd_kernels.backends import select
from kd_kernels.chunks import plan, tokens, vocabulary
from kd_kernels.chunks.gradients import HeadGradients, LogitsGradient
from kd_kernels.chunks.sides import Projection, Rows
from kd_kernels.chunks.task import Task
from kd_kernels.reduction import count, sum_dtype
from kd_kernels.top_k import Entries

_PLANS = {"tokens": tokens.losses, "vocabulary": vocabulary.losses}


def divergence(
    student: Tensor,  # logits (N, V); or hidden states (N, H), with
    student_weight: Tensor | None,  # (V, H)
    student_bias: Tensor | None,  # (V,)
    student_transform: list[float],  # scale, softcap (0: none)
    teacher: Tensor,  # likewise; or log-probabilities (N, K), with
    teacher_weight: Tensor | None,
    teacher_bias: Tensor | None,
    teacher_transform: list[float],
    ids: Tensor | None,  # (N, K)
    tail: str,
    weight: Tensor | None,  # (N,)
    upstream: Tensor | None,  # (N,)
    normalizer: Tensor | None,  # ()
    family: str,
    params: list[float],
    inverse_temperatures: list[float],
    scale: float,
    columns: int,
    reduction: str,
    wanted: list[bool],  # gradients of student, student_weight, student_bias
    with_stats: bool,
    on_device: bool,  # never look at values on the host
    chunk_tokens: int | None,
    memory_budget: int | None,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """-> loss, 0-d or (N,); gradients of student, weight and bias, empty if not wanted; statistics (S, N) or empty."""
    n, device, real = len(student), student.device, sum_dtype(student.dtype)
    if reduction == "mean" and normalizer is None:
        normalizer = count(weight, student[:, 0]).clamp(min=1)
    student_side = _side(student, student_weight, student_bias, student_transform, columns)
    teacher_side = _side(teacher, teacher_weight, teacher_bias, teacher_transform, columns)
    if ids is not None:
        teacher_side = Entries.of(ids, teacher, tail, columns, real)
    index = None
    if weight is not None and (student_weight is not None or teacher_weight is not None):
        if _waits(weight, on_device):
            index = _counted(weight)
        else:
            student_side = student_side.clear(weight == 0)
    if index is not None:  # products are what masked rows can save
        student_side, teacher_side = student_side.select(index), teacher_side.select(index)
        weight, upstream = weight[index], None if upstream is None else upstream[index]
    rates = (student_side.rate, teacher_side.rate)
    task = Task(
        family, params, tuple(k * rate for k, rate in zip(inverse_temperatures, rates, strict=True)), scale, columns,
        weight, upstream, normalizer, select.implementation(backend), n if index is None else len(index), real, device,
    )  # fmt: skip
    cast = _cast_bytes(student_side, student_weight) + _cast_bytes(teacher_side, teacher_weight)
    problem = _problem(student_side, teacher_side, student_weight, wanted, task, cast, gathered=index is not None)
    name, size, _ = plan.choose(problem, chunk_tokens, memory_budget)

    gradient = None
    if isinstance(student_side, Projection) and any(wanted):
        once = (name == "tokens" or size >= columns, name == "vocabulary" or size >= task.rows)
        gradient = HeadGradients(student_side, student_weight, student_bias, wanted, task.backend, once=once)
    elif wanted[0]:
        gradient = LogitsGradient(student_side, task.backend.empty_gradient(student), columns)
    stats = torch.empty((2 if ids is None else 5, task.rows) if with_stats else (0, 0), dtype=real, device=device)
    losses = _PLANS[name](student_side, teacher_side, task, size, gradient, stats)

    gradients = [None] * 3 if gradient is None else [*gradient.results()]
    if index is not None:
        losses = _spread(losses, index, n)
        stats = _spread(stats.t(), index, n).t().contiguous() if with_stats else stats
        if gradients[0] is not None and student_weight is not None:
            gradients[0] = _spread(gradients[0], index, n)
    if reduction != "none":
        losses = losses.sum() if normalizer is None else losses.sum() / normalizer
    return losses, *(student.new_empty(0) if g is None else g for g in gradients), stats


def _side(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, transform: list[float], columns: int
) -> Rows | Projection:
    return Rows(x) if weight is None else Projection.of(x, weight, bias, transform, columns)


def _waits(weight: Tensor, on_device: bool) -> bool:
    """Whether the host may look which rows count, for which it has to wait for a GPU."""
    return not weight.is_cuda or not (on_device or torch.cuda.is_current_stream_capturing())


def _counted(weight: Tensor) -> Tensor | None:
    """Which rows have a weight other than 0; None where all have."""
    index = weight.nonzero().squeeze(1)
    return None if len(index) == len(weight) else index


def _spread(x: Tensor, index: Tensor, n: int) -> Tensor:
    """Rows of x in their places among n, the others 0."""
    return x.new_zeros(n, *x.shape[1:]).index_copy_(0, index, x)


def _problem(
    student: Rows | Projection,
    teacher: Rows | Projection | Entries,
    weight: Tensor | None,
    wanted: list[bool],
    task: Task,
    cast_bytes: int,
    *,
    gathered: bool,
) -> plan.Problem:
    return plan.Problem.of(
        task.family,
        student.dtype,
        task.device.type,
        task.backend,
        rows=task.rows,
        columns=task.columns,
        student=_sizes(student),
        teacher=None if isinstance(teacher, Entries) else _sizes(teacher),
        gradients=tuple(wanted),
        vocabulary=0 if weight is None else len(weight),
        weight_itemsize=student.dtype.itemsize if weight is None else weight.dtype.itemsize,
        gathered=gathered,
        listed=teacher.ids.shape[1] if isinstance(teacher, Entries) else 0,
        softcap=isinstance(student, Projection) and student.softcap,
        cast_bytes=cast_bytes,
    )


def _cast_bytes(side: Rows | Projection | Entries, weight: Tensor | None) -> int:
    """Of the copy of a weight in the dtype of the products."""
    if weight is None or weight.dtype == side.weight.dtype:
        return 0
    return side.weight.numel() * side.weight.itemsize


def _sizes(side: Rows | Projection) -> plan.Side:
    hidden = side.hidden.shape[1] if isinstance(side, Projection) else 0
    return plan.Side(hidden, side.dtype.itemsize, side.buffered, side.width)
