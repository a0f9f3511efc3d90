"""Losses and gradients to compare with: float64 autograd through the textbook formulas."""

from typing import NamedTuple

import torch
from torch import Tensor

from kd_kernels.divergences import Divergence
from kd_kernels.losses import divergence


class Result(NamedTuple):
    losses: Tensor  # (N,)
    gradient: Tensor  # (N, V): of the sum of the losses


def evaluate(student: Tensor, teacher: Tensor, kind: str | Divergence, *, backend: str = "auto", **options) -> Result:
    """Per-row losses and the gradient of their sum, the latter by way of the reduced loss."""
    leaf = student.detach().clone().requires_grad_()
    divergence(leaf, teacher, kind, reduction="sum", backend=backend, **options).backward()
    with torch.no_grad():
        losses = divergence(student, teacher, kind, reduction="none", backend=backend, **options)
    return Result(losses, leaf.grad)


def truth(student: Tensor, teacher: Tensor, kind: str | Divergence, **options) -> Result:
    """In float64, from the very numbers the tensors hold."""
    return evaluate(student.double(), teacher.double(), kind, backend="reference", **options)


def eager(student: Tensor, teacher: Tensor, kind: str | Divergence, **options) -> Result:
    """What plain PyTorch makes of the same tensors, computing in float32 as users do."""
    return evaluate(student, teacher, kind, backend="reference", **options)
