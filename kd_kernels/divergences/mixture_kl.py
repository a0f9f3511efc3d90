"""One side against a mixture of both, gradients through the mixture: four kinds of two kernels.

With b the weight of the student in m = (1 - b) p + b q, `teacher_mixture` is KL(p, m) and `student_mixture` KL(q, m).
"""

from dataclasses import dataclass

from torch import Tensor

from kd_kernels.divergences.base import Divergence, Kernel, kl, log_mixture, log_ratio
from kd_kernels.divergences.kl import ForwardKL, ReverseKL


def _of_teacher(log_p: Tensor, log_q: Tensor, b: float) -> Tensor:
    return kl(log_p, log_q if b == 1 else log_mixture(log_p, log_q, b))


def _of_student(log_p: Tensor, log_q: Tensor, b: float) -> Tensor:
    return kl(log_q, log_p if b == 0 else log_mixture(log_p, log_q, b))


def _teacher_h(log_p: Tensor, log_q: Tensor, b: float) -> Tensor:
    """-b p q / m"""
    if b == 1:
        return ForwardKL().h(log_p, log_q)
    return -b * (log_p + log_ratio(log_q, log_mixture(log_p, log_q, b))).exp() * (log_q.exp() > 0)


def _student_h(log_p: Tensor, log_q: Tensor, b: float) -> Tensor:
    """q (log q - log m + 1 - b q / m)"""
    if b == 0:
        return ReverseKL().h(log_p, log_q)
    log_share = log_ratio(log_q, log_mixture(log_p, log_q, b))  # log(q / m)
    return log_q.exp() * (log_share + 1 - b * log_share.exp())


def _teacher_kernel(b: float) -> Kernel:
    return Kernel("kl", (1.0, 0.0)) if b == 1 else Kernel("teacher_mixture", (b, 0.0))


def _student_kernel(b: float) -> Kernel:
    return Kernel("kl", (0.0, 1.0)) if b == 0 else Kernel("student_mixture", (b, 0.0))


@dataclass(frozen=True)
class JSTeacher(Divergence):
    """KL(p, m), m = (1 - beta) p + beta q: the half of f-DISTILL's JS on teacher samples (arXiv 2307.15190, §3.2).

    beta weighs the *student*, the opposite of JSD's.
    """

    beta: float = 0.5
    name = "js_teacher"

    def __post_init__(self) -> None:
        self._require("beta", lambda beta: 0 < beta <= 1, "above 0 and at most 1")

    def rows(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        return _of_teacher(log_p, log_q, self.beta)

    def h(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        return _teacher_h(log_p, log_q, self.beta)

    @property
    def kernel(self) -> Kernel:
        return _teacher_kernel(self.beta)


@dataclass(frozen=True)
class JSStudent(Divergence):
    """KL(q, m), m = (1 - beta) p + beta q: the half of f-DISTILL's JS on student samples (arXiv 2307.15190, §3.2)."""

    beta: float = 0.5
    name = "js_student"

    def __post_init__(self) -> None:
        self._require("beta", lambda beta: 0 <= beta < 1, "at least 0 and below 1")

    def rows(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        return _of_student(log_p, log_q, self.beta)

    def h(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        return _student_h(log_p, log_q, self.beta)

    @property
    def kernel(self) -> Kernel:
        return _student_kernel(self.beta)


@dataclass(frozen=True)
class SkewForwardKL(Divergence):
    """KL(p, alpha p + (1 - alpha) q) (DistiLLM, arXiv 2402.03898, eq. 5). alpha = 0 is KL(p, q)."""

    alpha: float = 0.1
    name = "skew_forward_kl"

    def __post_init__(self) -> None:
        self._require("alpha", lambda alpha: 0 <= alpha < 1, "at least 0 and below 1")

    def rows(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        return _of_teacher(log_p, log_q, 1 - self.alpha)

    def h(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        return _teacher_h(log_p, log_q, 1 - self.alpha)

    @property
    def kernel(self) -> Kernel:
        return _teacher_kernel(1 - self.alpha)


@dataclass(frozen=True)
class SkewReverseKL(Divergence):
    """KL(q, (1 - alpha) p + alpha q) (DistiLLM, arXiv 2402.03898, eq. 5). alpha = 0 is KL(q, p)."""

    alpha: float = 0.1
    name = "skew_reverse_kl"

    def __post_init__(self) -> None:
        self._require("alpha", lambda alpha: 0 <= alpha < 1, "at least 0 and below 1")

    def rows(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        return _of_student(log_p, log_q, self.alpha)

    def h(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        return _student_h(log_p, log_q, self.alpha)

    @property
    def kernel(self) -> Kernel:
        return _student_kernel(self.alpha)
