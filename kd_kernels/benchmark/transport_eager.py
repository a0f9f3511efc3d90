"""Losses of optimal transport as one writes them in PyTorch by hand: in float32, autograd through every iteration."""

import math

import torch
from torch import Tensor


def sinkd(student: Tensor, teacher: Tensor, *, temperature: float, eps: float, iterations: int) -> Tensor:
    """<P, C> of logits [n, V] and [m, V] -> 0-d, with P scaled to rows and columns of 1.

    Cui et al. 2024, "Sinkhorn Distance Minimization for Knowledge Distillation", by their form of the iterations.
    """
    q, p = ((_single(x) / temperature).softmax(-1) for x in (student, teacher))
    cost = torch.cdist(q, p, p=1)
    return _scaled(cost, 1.0, 1.0, eps, iterations).mul(cost).sum()


def sinkhorn(cost: Tensor, *, eps: float, iterations: int) -> Tensor:
    """<P, C> for uniform marginals in the log domain, mean over problems [B, n, m] -> 0-d."""
    cost = _single(cost)
    batch, n, m = cost.shape
    scores = -cost / eps
    beta = cost.new_zeros(batch, m)
    for _ in range(iterations):
        alpha = -math.log(n) - (scores + beta[:, None, :]).logsumexp(2)
        beta = -math.log(m) - (scores + alpha[:, :, None]).logsumexp(1)
    plan = (scores + alpha[:, :, None] + beta[:, None, :]).exp()
    return (plan * cost).sum() / batch


def sinkhorn_plain(cost: Tensor, *, eps: float, iterations: int) -> Tensor:
    """The same by normalising the kernel itself, which vanishes where C is beyond 87 eps or so."""
    cost = _single(cost)
    batch, n, m = cost.shape
    return (_scaled(cost, 1 / n, 1 / m, eps, iterations) * cost).sum() / batch


def sorted_l1(student: Tensor, teacher: Tensor) -> Tensor:
    """sum_k |q_(k) - p_(k)|, mean over rows of logits [N, V] -> 0-d."""
    q, p = (_single(x).softmax(-1).sort(-1, descending=True).values for x in (student, teacher))
    return (q - p).abs().sum() / student.shape[0]


def _scaled(cost: Tensor, row: float, column: float, eps: float, iterations: int) -> Tensor:
    plan = (-cost / eps).exp()
    for _ in range(iterations):
        plan = plan * (row / plan.sum(-1, keepdim=True))
        plan = plan * (column / plan.sum(-2, keepdim=True))
    return plan


def _single(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()
