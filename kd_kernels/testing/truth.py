"""Losses and gradients to compare with: float64 autograd through the textbook formulas."""

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from kd_kernels.divergences import Divergence
from kd_kernels.losses import divergence
from kd_kernels.transport import l1_cost, sinkhorn, sorted_l1

TRANSPORT = ("sinkhorn", "sorted_l1")  # beside the kinds of divergences


class Result(NamedTuple):
    losses: Tensor  # (N,), or the one of all rows
    gradient: Tensor  # (N, V): of the sum of the losses


def evaluate(student: Tensor, teacher: Tensor, kind: str | Divergence, *, backend: str = "auto", **options) -> Result:
    """Losses and the gradient of their sum, the latter by way of the reduced loss."""
    leaf = student.detach().clone().requires_grad_()
    _loss(leaf, teacher, kind, reduction="sum", backend=backend, **options).backward()
    with torch.no_grad():
        losses = _loss(student, teacher, kind, reduction="none", backend=backend, **options)
    return Result(losses, leaf.grad)


def _loss(student, teacher, kind, *, mask=None, reduction, backend, **options) -> Tensor:
    if kind == "sinkhorn":  # between all rows of both sides, as SinKD has it
        cost = l1_cost(
            student, teacher, temperature=2.0, student_mask=mask, teacher_mask=mask, backend=backend, **options
        )
        masses = None if mask is None else mask.to(cost.dtype)
        return sinkhorn(cost, masses, masses, backend=backend).value
    loss = sorted_l1 if kind == "sorted_l1" else partial(divergence, kind=kind)
    return loss(student, teacher, mask=mask, reduction=reduction, backend=backend, **options)


def truth(student: Tensor, teacher: Tensor, kind: str | Divergence, **options) -> Result:
    """In float64, from the very numbers the tensors hold."""
    return evaluate(student.double(), teacher.double(), kind, backend="reference", **options)


def eager(student: Tensor, teacher: Tensor, kind: str | Divergence, **options) -> Result:
    """What plain PyTorch makes of the same tensors, computing in float32 as users do."""
    return evaluate(student, teacher, kind, backend="reference", **options)
