"""Derivatives of the ops.

A reduced loss computes its gradient together with its value, in one read of the logits; backward only multiplies it by
the upstream scalar. Per-row losses compute the gradient in backward, from the upstream gradient of each row.
"""

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
        (gradient,) = ctx.saved_tensors
        if torch.compiler.is_compiling():
            return gradient * upstream, None, None, None, None
        with_graph = torch.is_grad_enabled()  # create_graph=True
        # Nobody will ask for the saved gradient again unless the graph is kept: it becomes the result itself.
        if with_graph or _graph_is_kept():
            gradient = gradient.detach().clone()
        select.implementation(ctx.backend).scale_(gradient, upstream.detach() if with_graph else upstream)
        return _first_order_only(gradient) if with_graph else gradient, None, None, None, None


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


class _FirstOrderOnly(torch.autograd.Function):
    @staticmethod
    def forward(ctx, gradient):
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx, _):
        raise RuntimeError(
            "the compiled backends of kd_kernels have first derivatives only; use backend='reference' for second ones"
        )


def _first_order_only(gradient: Tensor) -> Tensor:
    """A gradient that says so when it is differentiated, rather than one without a graph."""
    return _FirstOrderOnly.apply(gradient.requires_grad_())


def _graph_is_kept() -> bool:
    """Whether this backward pass was called with retain_graph=True; True where torch does not tell."""
    query = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", None)
    return True if query is None else query()
