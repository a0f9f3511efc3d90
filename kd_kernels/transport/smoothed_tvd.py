"""The derivative of transport within one row."""

import torch
from torch import Tensor

from kd_kernels import ops
from kd_kernels.reduction import sum_dtype
from kd_kernels.smoothed_tvd import MAX_EPS, MIN_EPS

__all__ = ["MAX_EPS", "MIN_EPS", "smoothed_tvd"]


def smoothed_tvd(
    student: Tensor,  # (N, V)
    teacher: Tensor,  # (N, V)
    mask: Tensor | None,  # (N,) bool: rows that are read
    temperatures: tuple[float, float],
    eps: float,
    iterations: int,
) -> Tensor:  # (N,)
    """<P, C> of each row with C = 1 - I and P after so many iterations, rows (the student's classes) first.

    Gradients go to the student, through the iterations. Beside the gradient memory is that of a few rows at a time.
    """
    rates = [1 / t for t in temperatures]
    factor = None if mask is None else mask.to(sum_dtype(student.dtype))
    if student.requires_grad and torch.is_grad_enabled():
        return _SmoothedTVD.apply(student, teacher, factor, rates, eps, iterations)
    return ops.smoothed_tvd(student, teacher, factor, rates, eps, iterations, False)[0]


class _SmoothedTVD(torch.autograd.Function):
    @staticmethod
    def forward(ctx, student, teacher, factor, rates, eps, iterations):
        ctx.save_for_backward(student, teacher, factor)
        ctx.spec = rates, eps, iterations
        return ops.smoothed_tvd(student, teacher, factor, rates, eps, iterations, False)[0]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, upstream):
        student, teacher, factor = ctx.saved_tensors
        factor = upstream if factor is None else torch.where(factor != 0, upstream, 0)
        _, gradient = ops.smoothed_tvd(student, teacher, factor, *ctx.spec, True)
        return gradient, None, None, None, None, None
