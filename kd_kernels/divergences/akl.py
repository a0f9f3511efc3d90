"""AKL: both KLs, weighed row by row by where the student is wrong."""

from dataclasses import dataclass

import torch
from torch import Tensor

from kd_kernels.divergences.base import Divergence, Kernel, kl
from kd_kernels.divergences.kl import ForwardKL, ReverseKL


@dataclass(frozen=True)
class AKL(Divergence):
    """(g_head KL(p, q) + g_tail KL(q, p)) / (g_head + g_tail) (Rethinking KL, arXiv 2404.02657, eqs. 12-14).

    g sums |p - q| over the head and over the tail of the vocabulary. In descending order of p, ties by index, the head
    is what comes before the running mass exceeds mu, and always the first entry. The weights are constant in the
    gradient; where p = q they are 1/2.

    This is the rule of the paper's own code. DSKD, ToDi's repository and KDFlow put the crossing entry into the head.
    """

    mu: float = 0.5
    name = "akl"

    def __post_init__(self) -> None:
        self._require("mu", lambda mu: 0 <= mu < 1, "at least 0 and below 1")

    def rows(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        head = self._head(log_p, log_q).unsqueeze(-1)
        # A weight of 0 leaves its side out even where that is infinite, and out of the gradient.
        forward = kl(log_p, torch.where(head > 0, log_q, log_p))
        reverse = kl(log_q, torch.where(head < 1, log_p, log_q))
        return head.squeeze(-1) * forward + (1 - head.squeeze(-1)) * reverse

    def h(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        head = self._head(log_p, log_q).unsqueeze(-1)
        reverse = ReverseKL().h(log_p, log_q)
        return head * ForwardKL().h(log_p, log_q) + torch.where(head < 1, (1 - head) * reverse, 0)

    def _head(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """Weight of KL(p, q)."""
        with torch.no_grad():
            p, order = torch.sort(log_p.exp(), dim=-1, descending=True, stable=True)
            tail = p.cumsum(-1) > self.mu
            tail[..., 0] = False
            gap = (p - log_q.exp().gather(-1, order)).abs()
            g_tail = torch.where(tail, gap, 0).sum(-1)
            g = gap.sum(-1)
            return torch.where(g > 0, (g - g_tail) / g, 0.5)

    @property
    def kernel(self) -> Kernel:
        return Kernel("akl", (self.mu, 0.0))
