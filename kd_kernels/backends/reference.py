"""The losses in plain torch: readable, on any device, differentiable any number of times. The oracle of the others.

It holds several `[N, V]` tensors and evaluates the textbook formulas, so near convergence it is as inexact as any eager
code in its dtype; in float64 it is the truth the kernels are tested against.
"""

import math

import torch
from torch import Tensor

from kd_kernels.divergences import Divergence
from kd_kernels.reduction import reduce


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
    logits = logits[:, :columns].to(torch.float64 if logits.dtype == torch.float64 else torch.float32)
    if weight is None:
        return logits
    return torch.where((weight != 0).unsqueeze(-1), logits, 0)  # other rows are not read: they may hold NaN


def _log_probabilities(logits: Tensor, weight: Tensor | None, columns: int, temperature: float) -> Tensor:
    return (_as_real(logits, weight, columns) / temperature).log_softmax(-1)


def _entropy(log_probabilities: Tensor, weight: Tensor | None) -> Tensor:
    terms = log_probabilities.exp() * torch.where(log_probabilities > -math.inf, log_probabilities, 0)
    entropy = -terms.sum(-1)
    return entropy if weight is None else torch.where(weight != 0, entropy, 0)
