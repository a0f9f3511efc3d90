"""L1 distances of sorted distributions: torch's sort, and what is left in torch's operations beside it."""

import torch
from torch import Tensor
from torch.nn.functional import pad

# Sorted logits of both sides that exist at a time, 64 MiB in float32.
_SORTED = 1 << 24


def sorted_l1(
    student: Tensor,  # (N, V)
    teacher: Tensor,  # (N, V')
    factor: Tensor | None,  # (N,)
    inverse_temperatures: list[float],
    limit: int,
    with_gradient: bool,
) -> tuple[Tensor, Tensor]:
    """-> losses (N,), 0 where the factor is, and factor times their gradients (N, V)."""
    losses = torch.empty(student.shape[0], device=student.device)
    gradient = torch.empty(student.shape if with_gradient else 0, dtype=student.dtype, device=student.device)
    rows = max(1, _SORTED // (student.shape[1] + teacher.shape[1]))
    for first in range(0, student.shape[0], rows):
        part = slice(first, first + rows)
        shares = None if factor is None else factor[part].float()[:, None]
        z, order = _sorted(student[part], shares, stable=True)
        q, p = z.float(), _sorted(teacher[part], shares, stable=False)[0].float()
        q, p = ((x * rate).softmax(1) for x, rate in zip((q, p), inverse_temperatures, strict=True))
        difference = _ranks(q, limit) - _ranks(p, limit)
        loss = difference.abs().sum(1)
        losses[part] = loss if shares is None else torch.where(shares[:, 0] != 0, loss, 0)
        if with_gradient:
            sign = _ranks(difference.sign(), q.shape[1])
            entries = q * (sign - (q * sign).sum(1, keepdim=True)) * inverse_temperatures[0]
            entries = entries if shares is None else entries * shares
            gradient[part].scatter_(1, order, entries.to(gradient.dtype))
    return losses, gradient


def _ranks(x: Tensor, count: int) -> Tensor:
    """The first `count` columns, with zeros where there are fewer."""
    return pad(x[:, :count], (0, max(0, count - x.shape[1])))


def _sorted(logits: Tensor, shares: Tensor | None, stable: bool) -> tuple[Tensor, Tensor]:
    """Descending, with where each entry was; rows that have no share are not read."""
    if shares is not None:
        logits = torch.where(shares != 0, logits, 0)
    return logits.sort(dim=1, descending=True, stable=stable)
