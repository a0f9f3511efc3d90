"""Rows of a student and a teacher in every form a method takes them, and the check of a method by its formula.

A formula takes logits of the rows that count, float64 `[n, V]`, and their labels `[n]`, and gives their losses `[n]`.
Everything else, masks, weights, heads and reductions, is put around it here, in plain PyTorch.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

import kd_kernels as kd

SHAPE, VOCABULARY, HIDDEN = (3, 5), 11, 4
Side = Tensor | kd.Head
SIDES = ("logits", "heads", "head-logits", "logits-head")

MASK = torch.tensor([[1, 1, 0, 0, 1], [0, 0, 0, 0, 0], [1, 0, 1, 1, 1]]).bool()
WEIGHTS = torch.tensor([[0.5, 1.0, 0.0, 2.0, 0.25], [0.0] * 5, [1.0, 0.0, 3.0, 1.0, 1.0]])

# What a method may be told of its rows.
COUNTINGS = {
    "all": {},
    "mask": {"mask": MASK, "reduction": "mean"},
    "weights": {"mask": WEIGHTS, "reduction": "sum"},
    "normalizer": {"mask": MASK, "normalizer": 7.0},
    "none": {"mask": WEIGHTS, "reduction": "none"},
    "sequences": {"mask": MASK, "reduction": "sequence_mean"},
}


@dataclass(frozen=True)
class Rows:
    """Student and teacher of the same rows, with a label for each."""

    student: Side
    teacher: Side
    labels: Tensor

    @property
    def leaves(self) -> list[Tensor]:
        s = self.student
        return [s] if isinstance(s, Tensor) else [x for x in (s.hidden, s.weight, s.bias) if x is not None]

    @property
    def logits(self) -> tuple[Tensor, Tensor]:
        """Connected to the leaves."""
        return tuple(x if isinstance(x, Tensor) else x.logits() for x in (self.student, self.teacher))


def rows(sides: str = "logits", dtype: torch.dtype = torch.float64, scale: float = 2.0) -> Rows:
    """Rows that do not count under MASK or WEIGHTS hold NaN in logits, so that they are not read."""

    def side(kind: str) -> Side:
        if kind == "logits":
            return (scale * torch.randn(*SHAPE, VOCABULARY)).to(dtype)
        tensors = torch.randn(*SHAPE, HIDDEN), torch.randn(VOCABULARY, HIDDEN), torch.randn(VOCABULARY)
        return kd.Head(*(x.to(dtype) for x in tensors), scale=scale / 2)

    student, teacher = {"logits": ("logits", "logits"), "heads": ("head", "head")}.get(sides) or sides.split("-")
    problem = Rows(side(student), side(teacher), torch.randint(VOCABULARY, SHAPE))
    for leaf in problem.leaves:
        leaf.requires_grad_()
    return problem


def spoil(problem: Rows, mask: Tensor | None) -> None:
    """Writes NaN to rows that do not count."""
    if mask is None:
        return
    with torch.no_grad():
        for x in (problem.student, problem.teacher):
            (x if isinstance(x, Tensor) else x.hidden)[mask == 0] = math.nan


def reduced(losses: Tensor, counting: dict) -> Tensor:
    """Of losses of the rows that count, one after the other."""
    mask = counting.get("mask")
    weight = torch.ones(SHAPE, dtype=losses.dtype) if mask is None else mask.to(losses.dtype)
    placed = torch.zeros(SHAPE, dtype=losses.dtype)
    placed[weight != 0] = losses * weight[weight != 0]
    reduction = counting.get("reduction", "mean")
    if reduction == "none":
        return placed
    if reduction == "sum":
        return placed.sum()
    if reduction == "sequence_mean":
        return torch.stack([x[w != 0].mean() for x, w in zip(placed, weight, strict=True) if (w != 0).any()]).mean()
    return placed.sum() / counting.get("normalizer", (weight != 0).sum())


def check(
    method: Callable[..., Tensor],
    formula: Callable[[Tensor, Tensor, Tensor], Tensor],
    sides: str,
    counting: str,
    backend: str,
    **options,
) -> None:
    """Value and gradients of `method(student, teacher, labels, ...)` are the formula's."""
    problem, of_rows = rows(sides), COUNTINGS[counting]
    counted = of_rows.get("mask", torch.ones(SHAPE)) != 0
    expected = reduced(formula(*(x[counted] for x in problem.logits), problem.labels[counted]), of_rows)
    upstream = torch.randn_like(expected)
    gradients = torch.autograd.grad(expected, problem.leaves, upstream)
    spoil(problem, of_rows.get("mask"))
    actual = method(problem.student, problem.teacher, problem.labels, backend=backend, **of_rows, **options)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-13)
    for a, e in zip(torch.autograd.grad(actual, problem.leaves, upstream), gradients, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-11, atol=1e-12)


def golden(method: Callable[[Tensor, Tensor], Tensor], value: float, gradient: list[float]) -> None:
    """The row of numbers that every loss is known for, to eight decimals."""
    student = torch.tensor([[0.5, 1.5, -0.5, 0.0, -2.0]], dtype=torch.float64, requires_grad=True)
    teacher = torch.tensor([[2.0, 1.0, 0.5, -1.0, -3.0]], dtype=torch.float64)
    loss = method(student, teacher)
    torch.testing.assert_close(loss.sum().item(), value, rtol=0, atol=6e-9)
    (actual,) = torch.autograd.grad(loss.sum(), student)
    torch.testing.assert_close(actual[0], torch.tensor(gradient, dtype=torch.float64), rtol=0, atol=6e-9)
