"""Losses that are a sum over the vocabulary."""

import math

import torch
from torch import Tensor

from kd_kernels.divergences import Divergence
from kd_kernels.reduction import reduce, sum_dtype
from kd_kernels.top_k import PADDING, Entries


def divergence(
    student: Tensor,  # (N, V)
    teacher: Tensor,  # (N, V')
    weight: Tensor | None,  # (N,)
    normalizer: float | Tensor | None,
    kind: Divergence,
    temperatures: tuple[float, float],
    scale: float,
    columns: int,
    reduction: str,
    with_entropy: bool,
) -> tuple[Tensor, Tensor | None]:
    """-> loss, 0-d or [N]; entropies of student and teacher [2, N]."""
    log_q = _log_probabilities(student, weight, columns, temperatures[0])
    log_p = _log_probabilities(teacher, weight, columns, temperatures[1])
    loss = reduce(scale * kind.rows(log_p, log_q), weight, reduction, normalizer)
    entropy = torch.stack([_entropy(log_q, weight), _entropy(log_p, weight)]).detach() if with_entropy else None
    return loss, entropy


def top_k_divergence(
    student: Tensor,  # (N, V)
    listed: Entries,  # of the teacher, (N, K)
    weight: Tensor | None,  # (N,)
    normalizer: float | Tensor | None,
    kind: Divergence,
    temperature: float,
    scale: float,
    columns: int,
    reduction: str,
    with_stats: bool,
) -> tuple[Tensor, Tensor | None]:
    """-> loss, 0-d or [N]; statistics [5, N]: entropies, masses on the listed entries, overlap."""
    log_q = _log_probabilities(student, weight, columns, temperature)
    empty = listed.ids == PADDING
    listed_q = log_q.gather(1, listed.ids.clamp(min=0)).masked_fill(empty, -math.inf)
    listed_p = listed.logprobs
    rest_q = tail_logits(log_q, listed.ids, weight, 1.0, columns)
    # Where every entry is listed nothing is left, whatever the rounding of the log-probabilities says.
    complete = (~empty).sum(1) == columns
    rest_p = (1 - listed_p.exp().sum(1)).clamp(min=0).log().masked_fill(complete, -math.inf)
    if listed.tail == "bucket":
        log_p, compared = torch.cat([listed_p, rest_p[:, None]], 1), torch.cat([listed_q, rest_q[:, None]], 1)
    elif listed.tail == "truncate":
        log_p, compared = listed_p, listed_q
    else:
        nothing = empty.all(1, keepdim=True)
        log_p, compared = (x.masked_fill(nothing, 0).log_softmax(1) for x in (listed_p, listed_q))
    loss = reduce(scale * kind.rows(log_p, compared), weight, reduction, normalizer)
    if not with_stats:
        return loss, None
    with torch.no_grad():
        count = (~empty).sum(1)
        likeliest = log_q.topk(min(listed.ids.shape[1], columns), 1).values
        threshold = likeliest.gather(1, (count.clamp(1, likeliest.shape[1]) - 1)[:, None])
        shares = [
            listed_q.exp().sum(1), listed_p.exp().sum(1), (~empty & (listed_q >= threshold)).sum(1) / count.clamp(min=1)
        ]  # fmt: skip
        if weight is not None:
            shares = [torch.where(weight != 0, x, 0) for x in shares]
        return loss, torch.stack([_entropy(compared, weight), _entropy(log_p, weight), *shares])


def tail_logits(
    logits: Tensor,  # (N, V)
    ids: Tensor,  # (N, K): distinct within a row, or outside [0, columns) for an empty slot
    weight: Tensor | None,  # (N,): a row of weight 0 is not read, and gives 0
    inverse_temperature: float,
    columns: int,
) -> Tensor:  # (N,)
    """log sum exp(z / T) over the entries outside the list; -inf where there are none."""
    slots = torch.where((ids >= 0) & (ids < columns), ids, columns)  # those that are empty share a column more
    listed = torch.zeros(logits.shape[0], columns + 1, dtype=torch.bool, device=logits.device)
    listed = listed.scatter(1, slots, True)[:, :columns]
    scaled = _as_real(logits, weight, columns) * inverse_temperature
    scaled = torch.where(listed, -math.inf, scaled)
    empty = (scaled == -math.inf).all(-1)  # logsumexp has no gradient there, and would give NaN
    tail = torch.where(empty, -math.inf, torch.where(empty.unsqueeze(-1), 0, scaled).logsumexp(-1))
    return tail if weight is None else torch.where(weight != 0, tail, 0)


def _as_real(logits: Tensor, weight: Tensor | None, columns: int) -> Tensor:
    logits = logits[:, :columns].to(sum_dtype(logits.dtype))
    if weight is None:
        return logits
    return torch.where((weight != 0).unsqueeze(-1), logits, 0)  # other rows are not read: they may hold NaN


def _log_probabilities(logits: Tensor, weight: Tensor | None, columns: int, temperature: float) -> Tensor:
    return (_as_real(logits, weight, columns) / temperature).log_softmax(-1)


def _entropy(log_probabilities: Tensor, weight: Tensor | None) -> Tensor:
    terms = log_probabilities.exp() * torch.where(log_probabilities > -math.inf, log_probabilities, 0)
    entropy = -terms.sum(-1)
    return entropy if weight is None else torch.where(weight != 0, entropy, 0)
