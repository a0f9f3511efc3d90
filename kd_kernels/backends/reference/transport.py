"""Optimal transport: Sinkhorn iterations in the log domain, L1 costs, sorted distributions."""

import math

import torch
from torch import Tensor

from kd_kernels.reduction import sum_dtype

# Elements of the differences of distributions that exist at a time.
_DIFFERENCES = 1 << 22


def sinkhorn(
    cost: Tensor,  # (B, n, m)
    a: Tensor | None,  # (B, n); None: ones
    b: Tensor | None,  # (B, m)
    eps: Tensor,  # (B,) float64
    lengths: Tensor | None,  # (B, 2): rows and columns of each problem
    start: Tensor | None,  # (B, m): potentials of the columns to begin with; None: zeros
    iterations: int,
    tolerance: float,  # negative: none
    value: str,
    with_plan: bool,
    with_history: bool,
) -> tuple[Tensor, ...]:
    """-> values (B,), potentials f (B, n) and g (B, m), plan (B, n, m) or [0], iterations and marginal errors (B,).

    Then the history and the offsets, which autograd keeps here: both [0].
    """
    batch, n, m = cost.shape
    cost = cost.to(sum_dtype(cost.dtype))
    a, b = (cost.new_ones(batch, k) if x is None else x for x, k in ((a, n), (b, m)))
    if lengths is not None:
        inside_rows, inside_columns = (
            torch.arange(k, device=cost.device) < lengths[:, i, None] for i, k in ((0, n), (1, m))
        )
        a, b = torch.where(inside_rows, a, 0), torch.where(inside_columns, b, 0)
        cost = torch.where(inside_rows[:, :, None] & inside_columns[:, None, :], cost, 0)
    rate = (1 / eps).to(cost.dtype)[:, None, None]
    # Zero marginals take no part at all, from the first step on: rows and columns at -inf.
    pair = (a > 0)[:, :, None] & (b > 0)[:, None, :]
    scores = torch.where(pair, -cost * rate, -math.inf)
    log_a, log_b = _log(a), _log(b)
    beta = cost.new_zeros(batch, m) if start is None else torch.where(start.isfinite(), start * rate[:, :, 0], 0)
    alpha = torch.full_like(a, -math.inf)
    run = torch.zeros(batch, dtype=torch.int64, device=cost.device)
    active = torch.ones(batch, dtype=torch.bool, device=cost.device)
    for t in range(iterations):
        if tolerance >= 0 and t > 0:
            active = active & ~(_marginal_error(scores, alpha, beta, a) <= tolerance)
        next_alpha = _minus(log_a, _log_sum(scores + beta[:, None, :], 2))
        next_beta = _minus(log_b, _log_sum(scores + next_alpha[:, :, None], 1))
        alpha = torch.where(active[:, None], next_alpha, alpha)
        beta = torch.where(active[:, None], next_beta, beta)
        run = run + active
    plan = (scores + alpha[:, :, None] + beta[:, None, :]).exp()
    carried = torch.where(plan > 0, plan, 0)  # +inf costs where nothing is; NaN stays out of comparisons
    total = (carried * torch.where(plan > 0, cost, 0)).sum((1, 2))
    if value == "entropic":
        log_plan = torch.where(plan > 0, scores + alpha[:, :, None] + beta[:, None, :], 0)
        total = total + eps.to(cost.dtype) * (carried * (log_plan - 1)).sum((1, 2))
    total = torch.where(plan.isnan().any(2).any(1), math.nan, total)
    f, g = ((x / rate[:, :, 0]).detach() for x in (alpha, beta))
    error = _marginal_error(scores, alpha, beta, a).detach()
    history, offsets = cost.new_empty(0), cost.new_empty(0, dtype=torch.float64)
    return total, f, g, plan if with_plan else cost.new_empty(0), run, error, history, offsets


def _log(x: Tensor) -> Tensor:
    return torch.where(x > 0, torch.where(x > 0, x, 1).log(), -math.inf)


def _log_sum(scores: Tensor, dim: int) -> Tensor:
    """log sum exp; -inf, with gradient 0, where all are -inf."""
    empty = (scores == -math.inf).all(dim)
    return torch.where(empty, -math.inf, torch.where(empty.unsqueeze(dim), 0, scores).logsumexp(dim))


def _minus(log_mass: Tensor, log_sum: Tensor) -> Tensor:
    """The potential of a row or column; -inf where it has no mass, or nowhere to send it."""
    nothing = (log_mass == -math.inf) | (log_sum == -math.inf)
    return torch.where(nothing, -math.inf, torch.where(nothing, 0, log_mass) - torch.where(nothing, 0, log_sum))


@torch.no_grad()
def _marginal_error(scores: Tensor, alpha: Tensor, beta: Tensor, a: Tensor) -> Tensor:
    """sum |P 1 - a| / sum a of each problem; 0 where there is no mass."""
    sent = (scores + alpha[:, :, None] + beta[:, None, :]).exp().sum(2)
    mass = a.sum(1)
    return torch.where(mass > 0, (sent - a).abs().sum(1) / mass, 0)


def l1_cost(
    student: Tensor,  # (B, n, V)
    teacher: Tensor,  # (B, m, V')
    student_mask: Tensor | None,  # (B, n) bool
    teacher_mask: Tensor | None,  # (B, m) bool
    inverse_temperatures: tuple[float, float],
    columns: int,
    softmax: bool,
    real: torch.dtype,
) -> Tensor:
    """-> costs (B, n, m): sum_v |q_iv - p_jv|; 0 in masked rows and columns, which are not read."""
    q = _distributions(student, student_mask, inverse_temperatures[0], columns, softmax, real)
    p = _distributions(teacher, teacher_mask, inverse_temperatures[1], columns, softmax, real)
    rows = max(1, _DIFFERENCES // max(1, q.shape[0] * p.shape[1] * columns))
    parts = [(part[:, :, None, :] - p[:, None, :, :]).abs().sum(3) for part in q.split(rows, dim=1)]
    cost = torch.cat(parts, 1) if parts else q.new_zeros(q.shape[0], 0, p.shape[1])
    if student_mask is not None:
        cost = torch.where(student_mask[:, :, None], cost, 0)
    if teacher_mask is not None:
        cost = torch.where(teacher_mask[:, None, :], cost, 0)
    return cost


def sorted_l1(
    student: Tensor,  # (N, V)
    teacher: Tensor,  # (N, V')
    mask: Tensor | None,  # (N,) bool
    inverse_temperatures: tuple[float, float],
    limit: int,  # ranks that count
    real: torch.dtype,
) -> Tensor:  # (N,)
    """sum_k |q_(k) - p_(k)| over both distributions in descending order, the shorter followed by zeros."""
    q = _distributions(student, mask, inverse_temperatures[0], student.shape[1], True, real)
    p = _distributions(teacher, mask, inverse_temperatures[1], teacher.shape[1], True, real)
    q, p = (x.sort(dim=-1, descending=True, stable=True).values[:, :limit] for x in (q, p))
    width = max(q.shape[1], p.shape[1])
    q, p = (torch.nn.functional.pad(x, (0, width - x.shape[1])) for x in (q, p))
    losses = (q - p).abs().sum(-1)
    return losses if mask is None else torch.where(mask, losses, 0)


def _distributions(
    x: Tensor, mask: Tensor | None, inverse_temperature: float, columns: int, softmax: bool, real: torch.dtype
) -> Tensor:
    x = x[..., :columns].to(real)
    if mask is not None:
        x = torch.where(mask.unsqueeze(-1), x, 0)
    return (x * inverse_temperature).softmax(-1) if softmax else x
