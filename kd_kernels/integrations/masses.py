"""Losses of distributions that do not add up to 1: parts of a vocabulary, probabilities times those of other tokens.

With masses Q of the student and P of the teacher, each side of a row is completed by entries of known mass to a total
that both sides share. That is a pair of distributions, for the functions of the library; what the entries added has a
closed form and is taken off again.
"""

import torch
from torch import Tensor

import kd_kernels as kd


def jsd(log_q: Tensor, log_p: Tensor, beta: float) -> Tensor:
    """Generalised JSD of masses: sum_v beta P log(P / M) + (1 - beta) Q log(Q / M), M = beta P + (1 - beta) Q.

    At beta = 0 sum_v P log(P / Q), at beta = 1 sum_v Q log(Q / P).

    Args:
        log_q: logarithms of the student's masses, `[..., V]`, differentiable.
        log_p: of the teacher's.
        beta: weight of the teacher.

    Returns:
        `[...]`.
    """
    mass_q, mass_p = log_q.exp().sum(-1, keepdim=True), log_p.exp().sum(-1, keepdim=True)
    total = 1 + torch.maximum(mass_q, mass_p).detach()
    # One entry more. Its mass is at least 1, so that its logarithm is harmless.
    rest_q, rest_p = total - mass_q, total - mass_p
    q, p = torch.cat([log_q, rest_q.log()], -1), torch.cat([log_p, rest_p.log()], -1)
    rows = kd.divergence(q, p, "jsd", beta=beta, reduction="none")
    return total.squeeze(-1) * rows - _jsd_of_entry(rest_q.double(), rest_p.double(), beta).squeeze(-1).to(rows.dtype)


def _jsd_of_entry(q: Tensor, p: Tensor, beta: float) -> Tensor:
    if beta == 0:
        return p * (p / q).log()
    if beta == 1:
        return q * (q / p).log()
    m = beta * p + (1 - beta) * q
    return beta * p * (p / m).log() + (1 - beta) * q * (q / m).log()


def sorted_l1(log_q: Tensor, log_p: Tensor) -> Tensor:
    """sum_k |Q_(k) - P_(k)| of masses in descending order, the shorter side followed by zeros.

    Args:
        log_q: logarithms of the student's masses, `[..., V]`, differentiable.
        log_p: of the teacher's, `[..., V']`.

    Returns:
        `[...]`.
    """
    mass_q, mass_p = log_q.exp().sum(-1, keepdim=True), log_p.exp().sum(-1, keepdim=True)
    m = 1 + torch.maximum(mass_q, mass_p).detach()
    # Two entries more, (4m + P - Q, m) and (3m, 2m), larger than all others: they rank first and second on both sides.
    # Their differences, m + P - Q and -m, have signs that are certain, and with them the gradient.
    q = torch.cat([log_q, (4 * m + mass_p - mass_q).log(), m.log()], -1)
    p = torch.cat([log_p, (3 * m).log(), (2 * m).log()], -1)
    total = (5 * m + mass_p).squeeze(-1)
    rows = kd.sorted_l1(q, p, reduction="none")
    return total * rows - (2 * m + mass_p - mass_q).squeeze(-1)
