"""ToDi: the direction of the KL chosen entry by entry."""

from dataclasses import dataclass

import torch
from torch import Tensor

from kd_kernels.divergences.base import Divergence, Kernel, log_ratio


@dataclass(frozen=True)
class ToDi(Divergence):
    """sum w p (log p - log q) + (1 - w) q (log q - log p), w = sigmoid(beta (log p - log q)) (arXiv 2505.16297).

    w is constant in the gradient. At beta = 1, w = p / (p + q) and the value is that of Jeffreys; the gradient is not.
    """

    beta: float = 1.0
    name = "todi"

    def __post_init__(self) -> None:
        self._require("beta", lambda beta: 0 <= beta <= 1e30, "from 0 to 1e30")

    def rows(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        w, forward, reverse = self._parts(log_p, log_q)
        return (w * log_p.exp() * forward + (1 - w) * log_q.exp() * reverse).sum(-1)

    def h(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        w, _, reverse = self._parts(log_p, log_q)
        return (1 - w) * log_q.exp() * (1 + reverse) - w * log_p.exp()

    def _parts(self, log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """w, log p - log q where p > 0, log q - log p where q > 0."""
        forward, reverse = log_ratio(log_p, log_q), log_ratio(log_q, log_p)
        d = torch.where(log_p.exp() > 0, forward, -reverse).clamp(-1e30, 1e30)  # finite, as beta may be 0
        return torch.sigmoid(self.beta * d).detach(), forward, reverse

    @property
    def kernel(self) -> Kernel:
        return Kernel("todi", (self.beta, 0.0))
