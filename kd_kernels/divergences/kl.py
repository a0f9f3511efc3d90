"""KL(p, q), KL(q, p) and their sum."""

from dataclasses import dataclass

from torch import Tensor

from kd_kernels.divergences.base import Divergence, Kernel, kl, log_ratio


@dataclass(frozen=True)
class ForwardKL(Divergence):
    """KL(p, q) = sum p (log p - log q): mass-covering, the classical distillation loss (Hinton et al., 2015)."""

    name = "forward_kl"

    def rows(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        return kl(log_p, log_q)

    def h(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        return -log_p.exp()

    @property
    def kernel(self) -> Kernel:
        return Kernel("kl", (1.0, 0.0))


@dataclass(frozen=True)
class ReverseKL(Divergence):
    """KL(q, p) = sum q (log q - log p): mode-seeking (MiniLLM, arXiv 2306.08543)."""

    name = "reverse_kl"

    def rows(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        return kl(log_q, log_p)

    def h(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        return log_q.exp() * (1 + log_ratio(log_q, log_p))

    @property
    def kernel(self) -> Kernel:
        return Kernel("kl", (0.0, 1.0))


@dataclass(frozen=True)
class Jeffreys(Divergence):
    """KL(p, q) + KL(q, p)."""

    name = "jeffreys"

    def rows(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        return kl(log_p, log_q) + kl(log_q, log_p)

    def h(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        return ForwardKL().h(log_p, log_q) + ReverseKL().h(log_p, log_q)

    @property
    def kernel(self) -> Kernel:
        return Kernel("kl", (1.0, 1.0))
