"""Divergences from a sparse teacher, by way of a small dense problem.

With q the student's softmax over the vocabulary and k the K listed entries, the losses compare
    bucket        (q_k ..., 1 - sum q_k)   with  (p_k ..., 1 - sum p_k)
    renormalize   q_k / sum q              with  p_k / sum p
    truncate      q_k                      with  p_k, neither of which need sum to 1
so the first two are divergences of rows of K + 1 and K logits: the student's listed logits and the log-sum-exp of its
tail, against the listed log-probabilities. The row kernels solve them like any other, with every kind and all their
digits; what is left to do over the vocabulary is the log-sum-exp of the tail and the gradient through it,

    d tail / d z_v = exp(z_v / T - tail) / T     for v not listed.
"""

import math

import torch
from torch import Tensor

from kd_kernels.chunks.task import Task
from kd_kernels.divergences import Kernel, formula
from kd_kernels.top_k import PADDING, Entries


def losses(
    x: Tensor,  # (C, V)
    listed: Entries,
    task: Task,
    rows: slice,
    gradient: Tensor,  # (C, V), may be x; empty: not wanted
    stats: Tensor,  # (5, C) entropies, masses of student and teacher on the listed entries, overlap; or empty
) -> Tensor:
    """-> weighted losses (C,) of a chunk of rows."""
    rate, weight = task.inverse_temperatures[0], task.rows_of(task.weight, rows)
    student = x.gather(1, listed.ids.clamp(min=0)).to(task.real) * rate
    student = student.masked_fill(listed.ids == PADDING, -math.inf)
    if listed.tail == "renormalize" and not stats.numel():
        tail = student.new_zeros(len(x))
    else:
        tail = task.backend.tail_logits(x, listed.ids, weight, rate, task.columns)
    entropy = torch.empty((2, len(x)) if stats.numel() else (0,), dtype=task.real, device=x.device)
    solve = _truncated if listed.tail == "truncate" else _complete
    result, entries, tail_factor = solve(student, tail, listed, task, rows, gradient.numel() > 0, entropy)
    if stats.numel():
        stats[:2] = entropy
        _shares(x, student, tail, listed, task, weight, stats[2:])
    if gradient.numel():
        task.backend.tail_gradient(
            x, listed.ids, weight, entries * rate, tail, tail_factor * rate, rate, task.columns, gradient
        )
    return result


def _complete(student, tail, listed, task, rows, with_gradient, entropy) -> tuple[Tensor, Tensor, Tensor]:
    """Tails "bucket" and "renormalize": losses, gradients of the listed entries and of the tail."""
    teacher = listed.logprobs
    if listed.tail == "bucket":
        rest = (1 - teacher.double().exp().sum(1)).clamp(min=0).log().to(teacher.dtype)
        # Where every entry is listed nothing is left, whatever the rounding of the log-probabilities says.
        rest = rest.masked_fill((listed.ids != PADDING).sum(1) == task.columns, -math.inf)
        student, teacher = torch.cat([student, tail[:, None]], 1), torch.cat([teacher, rest[:, None]], 1)
    else:
        nothing = (listed.ids == PADDING).all(1, keepdim=True)  # a row without entries compares nothing: its loss is 0
        student, teacher = student.masked_fill(nothing, 0), teacher.masked_fill(nothing, 0)
    gradient = student if with_gradient else student[:0]
    result = task.backend.row_losses(
        student, teacher, task.rows_of(task.weight, rows), task.rows_of(task.upstream, rows), task.normalizer,
        task.family, task.params, (1.0, 1.0), task.scale, student.shape[1], gradient, entropy,
    )  # fmt: skip
    k = listed.ids.shape[1]
    return result, gradient[:, :k], gradient[:, k] if listed.tail == "bucket" else torch.zeros_like(tail)


def _truncated(student, tail, listed, task, rows, with_gradient, entropy) -> tuple[Tensor, Tensor, Tensor]:
    """Tail "truncate", by the formula itself: K entries, of distributions that are not normalised over them.

    In float64: nothing is added here that would keep small differences, and the entries are few.
    """
    student, tail, logprobs = student.double(), tail.double(), listed.logprobs.double()
    log_sum = torch.logaddexp(student.logsumexp(1), tail)
    log_q = student - log_sum[:, None]
    divergence = formula(Kernel(task.family, tuple(task.params)))
    factor = torch.full_like(tail, task.scale)
    weight, upstream = task.rows_of(task.weight, rows), task.rows_of(task.upstream, rows)
    if weight is not None:
        factor = factor * weight
    result = torch.where(factor != 0, factor * divergence.rows(logprobs, log_q), 0)
    if entropy.numel():
        entropy[0] = -_expectation(log_q, log_q)
        entropy[1] = -_expectation(logprobs, logprobs)
    if not with_gradient:
        return result, log_q, tail
    if upstream is not None:
        factor = factor * upstream
    if task.normalizer is not None:
        factor = factor / task.normalizer
    h = torch.where((factor != 0)[:, None], factor[:, None] * divergence.h(logprobs, log_q), 0)
    h_sum = h.sum(1)
    entries, tail_factor = h - log_q.exp() * h_sum[:, None], -h_sum * (tail - log_sum).exp()
    return result, entries.to(task.real), tail_factor.to(task.real)


def _expectation(log_p: Tensor, values: Tensor) -> Tensor:
    p = log_p.exp()
    return torch.where(p > 0, p * values, 0).sum(1)


def _shares(x, student, tail, listed, task, weight, out: Tensor) -> None:
    """Mass of student and of teacher on the listed entries; share of them among as many of the student's likeliest."""
    present = listed.ids != PADDING
    log_sum = torch.logaddexp(student.logsumexp(1), tail)
    out[0] = (student - log_sum[:, None]).exp().sum(1)
    out[1] = listed.logprobs.exp().sum(1)
    # The listed entries among the K likeliest are those that reach the smallest of these.
    count = present.sum(1)
    k = min(listed.ids.shape[1], task.columns)
    likeliest = x[:, : task.columns].topk(k, dim=1).values.to(task.real) * task.inverse_temperatures[0]
    threshold = likeliest.gather(1, (count.clamp(min=1, max=k) - 1)[:, None])
    out[2] = (present & (student >= threshold)).sum(1) / count.clamp(min=1)
    if weight is not None:
        out.masked_fill_(weight == 0, 0)
