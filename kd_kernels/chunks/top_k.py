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


class ListedRows:
    """Losses of rows whose logits come in slices of the vocabulary, one or many: `take` them all, `solve`, and hand
    them over again for their `gradient`."""

    def __init__(self, listed: Entries, task: Task, rows: slice, *, with_stats: bool) -> None:
        self._listed, self._task, self._rows = listed, task, rows
        self._weight = task.rows_of(task.weight, rows)
        self._rate = task.inverse_temperatures[0]
        self._student = torch.full_like(listed.logprobs, -math.inf)  # tempered logits of the listed entries
        self._tail = torch.full_like(self._student[:, 0], -math.inf, dtype=torch.float64)
        self._needs_tail = listed.tail != "renormalize" or with_stats
        # As many of the student's largest logits as entries are listed.
        self._likeliest = self._student[:, :0] if with_stats else None

    def take(self, x: Tensor, columns: slice) -> None:
        """x: (C, W), the logits from column `columns.start` on; those beyond `columns` do not count."""
        width = columns.stop - columns.start
        ids = self._listed.ids - columns.start
        here = (ids >= 0) & (ids < width) & (self._listed.ids != PADDING)
        logits = x.gather(1, ids.clamp(0, width - 1)).to(self._task.real) * self._rate
        self._student = torch.where(here, logits, self._student)
        if self._needs_tail:
            tail = self._task.backend.tail_logits(x, ids, self._weight, self._rate, width)
            self._tail = torch.logaddexp(self._tail, tail.double())
        if self._likeliest is not None:
            k = self._listed.ids.shape[1]
            largest = x[:, :width].topk(min(k, width), dim=1).values.to(self._task.real) * self._rate
            both = torch.cat([self._likeliest, largest], dim=1)
            self._likeliest = both.topk(min(k, both.shape[1]), dim=1).values

    def solve(self, *, with_gradient: bool, stats: Tensor) -> Tensor:
        """-> weighted losses (C,); writes stats (5, C): entropies, masses on the listed entries, overlap; or none."""
        solve = _truncated if self._listed.tail == "truncate" else _complete
        tail = self._tail.to(self._task.real)
        entropy = torch.empty((2, len(tail)) if stats.numel() else (0,), dtype=tail.dtype, device=tail.device)
        losses, entries, tail_factor = solve(
            self._student, tail, self._listed, self._task, self._rows, with_gradient, entropy
        )
        if stats.numel():
            stats[:2] = entropy
            self._shares(stats[2:])
        if with_gradient:
            self._entries, self._tail_factor = entries * self._rate, tail_factor * self._rate
        return losses

    def gradient(self, x: Tensor, columns: slice, out: Tensor) -> None:
        """Writes the gradient of a slice to `out`, which may be x."""
        width = columns.stop - columns.start
        self._task.backend.tail_gradient(
            x, self._listed.ids - columns.start, self._weight, self._entries, self._tail.to(self._task.real),
            self._tail_factor, self._rate, width, out,
        )  # fmt: skip

    def _shares(self, out: Tensor) -> None:
        """Mass of student and of teacher on the listed entries; share of these among the student's likeliest."""
        present = self._listed.ids != PADDING
        log_sum = torch.logaddexp(self._student.double().logsumexp(1), self._tail)
        out[0] = (self._student - log_sum[:, None]).exp().sum(1)
        out[1] = self._listed.logprobs.exp().sum(1)
        count = present.sum(1)
        least = count.clamp(1, self._likeliest.shape[1]) - 1
        among = present & (self._student >= self._likeliest.gather(1, least[:, None]))
        out[2] = among.sum(1) / count.clamp(min=1)
        if self._weight is not None:
            out.masked_fill_(self._weight == 0, 0)


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
    result = torch.where(factor != 0, factor * divergence.rows(logprobs, log_q), 0).to(task.real)
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
