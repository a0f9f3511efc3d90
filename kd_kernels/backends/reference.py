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


def _log_probabilities(logits: Tensor, weight: Tensor | None, columns: int, temperature: float) -> Tensor:
    real = torch.float64 if logits.dtype == torch.float64 else torch.float32
    logits = logits[:, :columns].to(real)
    if weight is not None:  # rows that do not count are not read: they may hold NaN
        logits = torch.where((weight != 0).unsqueeze(-1), logits, 0)
    return (logits / temperature).log_softmax(-1)


def _entropy(log_probabilities: Tensor, weight: Tensor | None) -> Tensor:
    terms = log_probabilities.exp() * torch.where(log_probabilities > -math.inf, log_probabilities, 0)
    entropy = -terms.sum(-1)
    return entropy if weight is None else torch.where(weight != 0, entropy, 0)
