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

Tensors = Sequence[Tensor | None]


class Spec(NamedTuple):
    """The arguments of the ops that are not tensors."""

    family: str
    params: tuple[float, ...]
    inverse_temperatures: tuple[float, float]
    scale: float
    columns: int


class RowsLoss(NamedTuple):
    """Two tensors of logits, by the op over rows. Its tensors: student, teacher, weight, normalizer."""

    spec: Spec
    reduction: str
    with_stats: bool
    backend: str

    def values(self, tensors: Tensors, *, with_gradients: bool = False) -> tuple[Tensor, Sequence[Tensor], Tensor]:
        """-> loss; gradients; entropies [2, N] or [0]."""
        loss, gradient, entropy = ops.divergence(
            *tensors, *self.spec, self.reduction, with_gradients, self.with_stats, self.backend
        )
        return loss, (gradient,), entropy

    def gradients(self, tensors: Tensors, upstream: Tensor) -> Sequence[Tensor]:
        """Of the rows' losses, each times its upstream."""
        return (ops.divergence_backward(upstream, *tensors[:3], *self.spec, self.backend),)

    def spread(self, gradients: Sequence[Tensor]) -> Tensors:
        """Gradients of all arguments."""
        return gradients[0], None, None, None


class ChunkTensors(NamedTuple):
    """The tensors of the op over chunks, in its order."""

    student: Tensor
    student_weight: Tensor | None
    student_bias: Tensor | None
    teacher: Tensor
    teacher_weight: Tensor | None
    teacher_bias: Tensor | None
    ids: Tensor | None
    weight: Tensor | None
    normalizer: Tensor | None


class ChunksLoss(NamedTuple):
    """Hidden states or a sparse teacher on some side, by the op over chunks. Its tensors: `ChunkTensors`."""

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

    def values(self, tensors: Tensors, *, with_gradients: bool = False) -> tuple[Tensor, Sequence[Tensor], Tensor]:
        """-> loss; gradients of student, weight and bias; statistics."""
        return self._run(tensors, None, self.wanted if with_gradients else [False] * 3, self.with_stats)

    def gradients(self, tensors: Tensors, upstream: Tensor) -> Sequence[Tensor]:
        """Of the rows' losses, each times its upstream: everything is computed again."""
        return self._run(tensors, upstream, self.wanted, False)[1]

    def spread(self, gradients: Sequence[Tensor]) -> Tensors:
        """Gradients of all arguments."""
        of_student = [g if wanted else None for g, wanted in zip(gradients, self.wanted, strict=True)]
        return *of_student, *[None] * (len(ChunkTensors._fields) - 3)

    def _run(
        self, tensors: Tensors, upstream: Tensor | None, wanted: list[bool], with_stats: bool
    ) -> tuple[Tensor, Sequence[Tensor], Tensor]:
        x = ChunkTensors(*tensors)
        loss, *gradients, stats = ops.chunked_divergence(
            x.student, x.student_weight, x.student_bias, self.student_transform, x.teacher, x.teacher_weight,
            x.teacher_bias, self.teacher_transform, x.ids, self.tail, x.weight, upstream, x.normalizer, *self.spec,
            self.reduction, wanted, with_stats, *self[7:],
        )  # fmt: skip
        return loss, gradients, stats


class Reduced(torch.autograd.Function):
    """Sum or mean over rows: a loss and its tensors -> 0-d, statistics."""

    @staticmethod
    def forward(ctx, loss, *tensors):
        value, gradients, stats = loss.values(tensors, with_gradients=True)
        ctx.save_for_backward(*gradients)
        ctx.loss = loss
        ctx.mark_non_differentiable(stats)
        ctx.set_materialize_grads(False)
        return value, stats

    @staticmethod
    def backward(ctx, upstream, _):
        if upstream is None:  # undefined: zero
            return (None,) * len(ctx.needs_input_grad)
        return None, *ctx.loss.spread(_scaled(ctx.saved_tensors, upstream, ctx.loss.backend))


class RowByRow(torch.autograd.Function):
    """Losses (N,) of rows, statistics likewise."""

    @staticmethod
    def forward(ctx, loss, *tensors):
        values, _, stats = loss.values(tensors)
        ctx.save_for_backward(*tensors)
        ctx.loss = loss
        ctx.mark_non_differentiable(stats)
        ctx.set_materialize_grads(False)
        return values, stats

    @staticmethod
    def backward(ctx, upstream, _):
        if upstream is None:  # undefined: zero
            return (None,) * len(ctx.needs_input_grad)
        with_graph = torch.is_grad_enabled() and not torch.compiler.is_compiling()
        tensors = ctx.saved_tensors
        if with_graph:
            upstream, tensors = upstream.detach(), [None if x is None else x.detach() for x in tensors]
        gradients = ctx.loss.gradients(tensors, upstream)
        if with_graph:
            gradients = [_first_order_only(g) for g in gradients]
        return None, *ctx.loss.spread(gradients)


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
