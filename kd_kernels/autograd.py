"""Derivatives of the ops.

A reduced loss computes its gradient together with its value, in one read of the logits; backward only multiplies it by
the upstream scalar. Per-row losses compute the gradient in backward, from the upstream gradient of each row.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from kd_kernels import ops
from kd_kernels.backends import select


class Spec(NamedTuple):
    """The arguments of the ops that are not tensors."""

    family: str
    params: tuple[float, ...]
    inverse_temperatures: tuple[float, float]
    scale: float
    columns: int


class ReducedDivergence(torch.autograd.Function):
    """Sum or mean over rows -> 0-d loss, entropies [2, N] or [0]. options: spec, reduction, with_entropy, backend."""

    @staticmethod
    def forward(ctx, student, teacher, weight, normalizer, options):
        spec, reduction, with_entropy, backend = options
        loss, gradient, entropy = ops.divergence(
            student, teacher, weight, normalizer, *spec, reduction, True, with_entropy, backend
        )
        ctx.save_for_backward(gradient)
        ctx.backend = backend
        ctx.mark_non_differentiable(entropy)
        ctx.set_materialize_grads(False)
        return loss, entropy

    @staticmethod
    def backward(ctx, upstream, _):
        if upstream is None:  # undefined: zero
            return (None,) * 5
        return *_scaled(ctx.saved_tensors, upstream, ctx.backend), None, None, None, None


class RowDivergence(torch.autograd.Function):
    """-> per-row losses [N], entropies [2, N] or [0]."""

    @staticmethod
    def forward(ctx, student, teacher, weight, spec, with_entropy, backend):
        losses, _, entropy = ops.divergence(student, teacher, weight, None, *spec, "none", False, with_entropy, backend)
        ctx.save_for_backward(student, teacher, weight)
        ctx.spec, ctx.backend = spec, backend
        ctx.mark_non_differentiable(entropy)
        ctx.set_materialize_grads(False)
        return losses, entropy

    @staticmethod
    def backward(ctx, upstream, _):
        if upstream is None:  # undefined: zero
            return (None,) * 6
        student, teacher, weight = ctx.saved_tensors
        with_graph = torch.is_grad_enabled() and not torch.compiler.is_compiling()
        if with_graph:
            upstream, student, teacher = upstream.detach(), student.detach(), teacher.detach()
        gradient = ops.divergence_backward(upstream, student, teacher, weight, *ctx.spec, ctx.backend)
        return (_first_order_only(gradient) if with_graph else gradient, *[None] * 5)


class ChunkOptions(NamedTuple):
    """The arguments of the op over chunks that are not tensors."""

    student_transform: list[float]
    teacher_transform: list[float]
    tail: str
    spec: Spec
    reduction: str
    wanted: list[bool]
    with_stats: bool
    on_device: bool
    chunk_tokens: int | None
    memory_budget: int | None
    backend: str


class ChunkTensors(NamedTuple):
    """Those that are, in the order of the op."""

    student: Tensor
    student_weight: Tensor | None
    student_bias: Tensor | None
    teacher: Tensor
    teacher_weight: Tensor | None
    teacher_bias: Tensor | None
    ids: Tensor | None
    weight: Tensor | None
    normalizer: Tensor | None


def chunked(x: ChunkTensors, options: ChunkOptions, upstream: Tensor | None = None) -> tuple[Tensor, ...]:
    """-> loss; gradients of student, weight and bias; statistics."""
    return ops.chunked_divergence(
        x.student, x.student_weight, x.student_bias, options.student_transform, x.teacher, x.teacher_weight,
        x.teacher_bias, options.teacher_transform, x.ids, options.tail, x.weight, upstream, x.normalizer, *options.spec,
        *options[4:],
    )  # fmt: skip


class ReducedChunks(torch.autograd.Function):
    """Sum or mean over rows from hidden states or a sparse teacher: ChunkOptions, *ChunkTensors -> 0-d loss, stats."""

    @staticmethod
    def forward(ctx, options, *tensors):
        loss, *gradients, stats = chunked(ChunkTensors(*tensors), options)
        ctx.save_for_backward(*gradients)
        ctx.options = options
        ctx.mark_non_differentiable(stats)
        ctx.set_materialize_grads(False)
        return loss, stats

    @staticmethod
    def backward(ctx, upstream, _):
        if upstream is None:  # undefined: zero
            return (None,) * (1 + len(ChunkTensors._fields))
        gradients = _scaled(ctx.saved_tensors, upstream, ctx.options.backend)
        return None, *_wanted(gradients, ctx.options), *[None] * 6


class RowChunks(torch.autograd.Function):
    """Per-row losses likewise -> losses (N,), stats. Backward computes everything again, with each row's gradient."""

    @staticmethod
    def forward(ctx, options, *tensors):
        nothing = options._replace(wanted=[False] * 3)
        losses, *_, stats = chunked(ChunkTensors(*tensors), nothing)
        ctx.save_for_backward(*tensors)
        ctx.options = options._replace(with_stats=False)
        ctx.mark_non_differentiable(stats)
        ctx.set_materialize_grads(False)
        return losses, stats

    @staticmethod
    def backward(ctx, upstream, _):
        if upstream is None:  # undefined: zero
            return (None,) * (1 + len(ChunkTensors._fields))
        with_graph = torch.is_grad_enabled() and not torch.compiler.is_compiling()
        tensors, upstream = ctx.saved_tensors, upstream.detach()
        if with_graph:
            tensors = [None if x is None else x.detach() for x in tensors]
        _, *gradients, _ = chunked(ChunkTensors(*tensors), ctx.options, upstream)
        if with_graph:
            gradients = [_first_order_only(g) for g in gradients]
        return None, *_wanted(gradients, ctx.options), *[None] * 6


def _wanted(gradients: Sequence[Tensor], options: ChunkOptions) -> list[Tensor | None]:
    return [g if wanted else None for g, wanted in zip(gradients, options.wanted, strict=True)]


class _FirstOrderOnly(torch.autograd.Function):
    @staticmethod
    def forward(ctx, gradient):
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx, _):
        raise RuntimeError(
            "the compiled backends of kd_kernels have first derivatives only; use backend='reference' for second ones"
        )


def _scaled(gradients: Sequence[Tensor], upstream: Tensor, backend: str) -> list[Tensor]:
    """Saved gradients times the upstream scalar."""
    if torch.compiler.is_compiling():
        return [gradient * upstream for gradient in gradients]
    with_graph = torch.is_grad_enabled()  # create_graph=True
    # Nobody will ask for the saved gradients again unless the graph is kept: they become the result themselves.
    if with_graph or _graph_is_kept():
        gradients = [gradient.detach().clone() for gradient in gradients]
    factor = upstream.detach() if with_graph else upstream
    for gradient in gradients:
        select.implementation(backend).scale_(gradient, factor)
    return [_first_order_only(gradient) for gradient in gradients] if with_graph else list(gradients)


def _first_order_only(gradient: Tensor) -> Tensor:
    """A gradient that says so when it is differentiated, rather than one without a graph."""
    return _FirstOrderOnly.apply(gradient.requires_grad_())


def _graph_is_kept() -> bool:
    """Whether this backward pass was called with retain_graph=True; True where torch does not tell."""
    query = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", None)
    return True if query is None else query()
