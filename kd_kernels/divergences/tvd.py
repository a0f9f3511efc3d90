"""Total variation distance."""

from dataclasses import dataclass

from torch import Tensor

from kd_kernels.divergences.base import Divergence, Kernel


@dataclass(frozen=True)
class TVD(Divergence):
    """1/2 sum |p - q|, at most 1 (f-DISTILL, arXiv 2307.15190, eq. 12). The subgradient at p = q is 0."""

    name = "tvd"

    def rows(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        return 0.5 * (log_p.exp() - log_q.exp()).abs().sum(-1)

    def h(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        q = log_q.exp()
        return 0.5 * q * (q - log_p.exp()).sign()

    @property
    def kernel(self) -> Kernel:
        return Kernel("tvd")
