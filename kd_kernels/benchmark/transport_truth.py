"""What is right for losses of optimal transport: float64 autograd through the textbook formulas, of distinct inputs.

A derivative of |.| at 0 is any of [-1, 1]. Where two probabilities are so close that float32 cannot tell which is
larger, the gradient may be off by what a sign more or less makes: the *slack* of that entry, beside the budget.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from kd_kernels.benchmark.truth import off
from kd_kernels.testing.budget import allowed_error


class Truth(NamedTuple):
    """Of the loss and, where it is wanted, of the gradient to each distinct part of the input."""

    loss: Tensor  # 0-d
    loss_budget: float
    gradient: Tensor | None  # (D, ...)
    gradient_budget: float
    slack: Tensor | None  # of the shape of the gradient; None: none

    def complaint(self, loss: Tensor, leaf: Tensor) -> str | None:
        """What is wrong with a loss and the gradient of a leaf `(N, ...)` whose parts repeat the distinct ones."""
        wrong = off("the loss", (loss.detach() - self.loss).abs(), self.loss_budget)
        if wrong or self.gradient is None:
            return wrong
        if leaf.grad is None:
            return "there is no gradient"
        errors = []
        for part in leaf.grad.split(len(self.gradient)):
            error = (part - self.gradient[: len(part)]).abs()
            errors.append((error if self.slack is None else error - self.slack[: len(part)]).max())
        return off("the gradient", torch.stack(errors).max(), self.gradient_budget)


def sinkhorn_truth(cost: Tensor, size: int, *, eps: float, iterations: int, backward: bool) -> Truth:
    """<P, C> for uniform marginals, mean over `size` problems: the first of these D, or all of them over and over."""

    def evaluate(cost: Tensor) -> tuple[Tensor, Tensor | None]:
        cost = cost.detach().clone().requires_grad_(backward)
        terms = _terms(cost, 1 / cost.shape[1], 1 / cost.shape[2], eps, iterations)
        return terms.detach(), torch.autograd.grad(terms.sum(), cost)[0] / size if backward else None

    (terms, gradient), (rounded, rounded_gradient) = evaluate(cost.double()), evaluate(cost)
    repeat = torch.arange(size, device=cost.device) % len(cost)
    loss_budget = cost.shape[1] * allowed_error(terms.sum(2), rounded.sum(2))
    budget = _gradient_budget(gradient, rounded_gradient, terms.max().item() / eps / size) if backward else 0.0
    return Truth(terms.sum((1, 2))[repeat].mean(), loss_budget, gradient, budget, None)


def sinkd_truth(
    student: Tensor,  # (D, V)
    teacher: Tensor,  # (D, V)
    size: int,
    *,
    temperature: float,
    eps: float,
    iterations: int,
    backward: bool,
) -> Truth:
    """<P, C> for marginals of 1, with `size` rows on either side that repeat these D."""
    repeat = torch.arange(size, device=student.device) % len(student)
    counts = repeat.bincount()

    def evaluate(student: Tensor, teacher: Tensor) -> tuple[Tensor, ...]:
        """-> the terms of the loss (size, size), and the gradients of the D rows and of their costs."""
        student = student.detach().clone().requires_grad_(backward)
        q, p = (_wide(x) / temperature for x in (student, teacher))
        cost = torch.cdist(q.softmax(-1), p.softmax(-1), p=1)
        [terms] = _terms(cost[repeat[:, None], repeat][None], 1.0, 1.0, eps, iterations)
        if not backward:
            return terms, None, None
        gradient, of_cost = torch.autograd.grad(terms.sum(), (student, cost))
        return terms.detach(), gradient / counts[:, None], of_cost / counts[:, None]

    terms, gradient, of_cost = evaluate(student.double(), teacher.double())
    rounded, rounded_gradient, _ = evaluate(student, teacher)
    slack, budget = None, 0.0
    if backward:
        (log_q, doubt_q), (log_p, doubt_p) = (_log_probabilities(x, temperature) for x in (student, teacher))
        slack = torch.zeros_like(gradient)
        for p, of_pair in zip(log_p, of_cost.abs().t(), strict=True):
            slack += of_pair[:, None] * ((log_q - p).abs() <= doubt_q + doubt_p)
        sure = slack == 0
        q = log_q.exp()
        slack = _of_logits(2 * slack, q) / temperature
        largest = (q.max() * terms.max()).item() / eps / temperature
        budget = _gradient_budget(gradient[sure], rounded_gradient[sure], largest)
    return Truth(terms.sum(), size * allowed_error(terms.sum(1), rounded.sum(1)), gradient, budget, slack)


def sorted_l1_truth(student: Tensor, teacher: Tensor, size: int, *, backward: bool) -> Truth:
    """sum_k |q_(k) - p_(k)|, mean over `size` rows that repeat these D `(D, V)`."""

    def evaluate(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor | None]:
        student = student.detach().clone().requires_grad_(backward)
        q, p = (_wide(x).softmax(-1).sort(dim=-1, descending=True, stable=True).values for x in (student, teacher))
        losses = (q - p).abs().sum(-1)
        return losses.detach(), torch.autograd.grad(losses.sum(), student)[0] / size if backward else None

    losses, gradient = evaluate(student.double(), teacher.double())
    rounded, rounded_gradient = evaluate(student, teacher)
    repeat = torch.arange(size, device=student.device) % len(student)
    slack, budget = None, 0.0
    if backward:
        (log_q, doubt_q), (log_p, doubt_p) = (_log_probabilities(x, 1.0) for x in (student, teacher))
        unsure = _unsure(log_q, log_p, doubt_q, doubt_q + doubt_p)
        slack = _of_logits(2 * unsure.double(), log_q.exp()) / size
        budget = allowed_error(gradient[~unsure], rounded_gradient[~unsure])
    return Truth(losses[repeat].mean(), allowed_error(losses, rounded), gradient, budget, slack)


def _terms(cost: Tensor, row: float, column: float, eps: float, iterations: int) -> Tensor:
    """P_ij C_ij of costs (B, n, m). Autograd keeps the potentials and computes each iteration once more."""
    cost = _wide(cost)
    scores = -cost / eps

    def iteration(scores: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
        alpha = math.log(row) - (scores + beta[:, None, :]).logsumexp(2)
        return alpha, math.log(column) - (scores + alpha[:, :, None]).logsumexp(1)

    beta = torch.zeros_like(cost[:, 0])
    for _ in range(iterations):
        alpha, beta = checkpoint(iteration, scores, beta, use_reentrant=False)
    return (scores + alpha[:, :, None] + beta[:, None, :]).exp() * cost


def _gradient_budget(exact: Tensor, rounded: Tensor, largest: float) -> float:
    """`largest`: of the terms P C / eps of which the gradient is a sum; they cancel, in float32 whatever the dtype."""
    return allowed_error(exact, rounded) + 2 * torch.finfo(torch.float32).eps * largest


def _unsure(log_q: Tensor, log_p: Tensor, doubt_order: float, doubt_sign: float) -> Tensor:
    """Entries of q (D, V) of which rounding decides the sign of q_(k) - p_(k) at the rank they get."""
    x, order = log_q.sort(-1, descending=True)
    gap = x - log_p.sort(-1, descending=True).values
    x = -x
    first, last = torch.searchsorted(x, x - doubt_order), torch.searchsorted(x, x + doubt_order, right=True)

    def all_of(ranks: Tensor) -> Tensor:
        before = torch.nn.functional.pad(ranks.cumsum(-1), (1, 0))
        return before.gather(-1, last) - before.gather(-1, first) == last - first

    unsure = ~(all_of(gap > doubt_sign) | all_of(gap < -doubt_sign))
    return torch.empty_like(unsure).scatter_(-1, order, unsure)


def _log_probabilities(logits: Tensor, temperature: float) -> tuple[Tensor, float]:
    """log softmax in float64, and how far it may be off in float32."""
    exact = (logits.double() / temperature).log_softmax(-1)
    return exact, allowed_error(exact, (_wide(logits) / temperature).log_softmax(-1))


def _of_logits(slack: Tensor, q: Tensor) -> Tensor:
    """What the slack g of dL/dq may make of dL/dz = q (g - sum q g)."""
    slack = slack * q
    return slack + q * slack.sum(-1, keepdim=True)


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()
