"""Generalised Jensen-Shannon divergence."""

from dataclasses import dataclass

from torch import Tensor

from kd_kernels.divergences.base import Divergence, Kernel, kl, log_mixture, log_ratio
from kd_kernels.divergences.kl import ForwardKL, ReverseKL


@dataclass(frozen=True)
class JSD(Divergence):
    """beta KL(p, m) + (1 - beta) KL(q, m), m = beta p + (1 - beta) q (GKD, arXiv 2306.13649, eq. 1; TRL; Liger).

    beta weighs the *teacher*. By convention beta = 0 is KL(p, q) and beta = 1 is KL(q, p); the formula tends to 0
    there, as beta KL(p, q) and (1 - beta) KL(q, p).
    """

    beta: float = 0.5
    name = "jsd"

    def __post_init__(self) -> None:
        self._require("beta", lambda beta: 0 <= beta <= 1, "between 0 and 1")

    def rows(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        if self.beta == 0:
            return kl(log_p, log_q)
        if self.beta == 1:
            return kl(log_q, log_p)
        log_m = log_mixture(log_q, log_p, self.beta)
        return self.beta * kl(log_p, log_m) + (1 - self.beta) * kl(log_q, log_m)

    def h(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        if self.beta == 0:
            return ForwardKL().h(log_p, log_q)
        if self.beta == 1:
            return ReverseKL().h(log_p, log_q)
        return (1 - self.beta) * log_q.exp() * log_ratio(log_q, log_mixture(log_q, log_p, self.beta))

    @property
    def kernel(self) -> Kernel:
        if self.beta == 0:
            return Kernel("kl", (1.0, 0.0))
        if self.beta == 1:
            return Kernel("kl", (0.0, 1.0))
        return Kernel("jsd", (self.beta, 0.0))
