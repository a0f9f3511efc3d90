"""What a divergence is: a kind with its parameters, its formula in plain torch, and the kernel that computes it.

Notation everywhere: `p` teacher, `q` student, `log_p` and `log_q` their log-probabilities over the vocabulary. An entry
that one side forbids has log-probability -inf there; it contributes its limit, 0 or +inf, and never NaN.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor


class Kernel(NamedTuple):
    """What the compiled backends run for a divergence: a family of pointwise functions and its two parameters."""

    family: str
    params: tuple[float, float] = (0.0, 0.0)

    @property
    def curvature(self) -> float:
        """f''(1), the ratio of the divergence to the KL where the sides are close. TVD has 1."""
        a = self.params[0]
        return {
            "jsd": a * (1 - a), "teacher_mixture": a * a, "student_mixture": (1 - a) * (1 - a), "todi": 1 + a,
        }.get(self.family, 1.0)  # fmt: skip


@dataclass(frozen=True)
class Divergence:
    """A divergence D(p, q) between two distributions over the vocabulary.

    A subclass is a frozen dataclass of parameters with a `name`, the formula in `rows`, and the `kernel` that computes
    it. A subclass without a kernel runs on the reference backend.
    """

    name: ClassVar[str]

    def rows(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """D(p, q) of each row: `[..., V]`, `[..., V]` -> `[...]`, differentiable as the method defines it."""
        raise NotImplementedError

    def h(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """q dD/dq of each entry `[..., V]`, of one that has a kernel: dD/dz = (h - q sum h) / T.

        For sums over some entries of distributions that go on beyond them; whole rows are the kernels' work.
        """
        raise NotImplementedError

    @property
    def kernel(self) -> Kernel | None:
        return None

    def _require(self, parameter: str, fits: Callable[[float], bool], requirement: str) -> None:
        value = getattr(self, parameter)
        if isinstance(value, bool) or not isinstance(value, Real):
            raise TypeError(f"{type(self).__name__}: {parameter} must be a number, got {type(value).__name__}")
        if not fits(value):
            raise ValueError(f"{type(self).__name__}: {parameter} must be {requirement}, got {value}")


def log_ratio(log_a: Tensor, log_b: Tensor) -> Tensor:
    """log a - log b where a > 0, else 0: the factor of a in a sum, whose limit at a = 0 is 0.

    An `a` that underflows counts as 0, also against b = 0.
    """
    live = log_a.exp() > 0
    return torch.where(live, log_a, 0) - torch.where(live, log_b, 0)


def kl(log_a: Tensor, log_b: Tensor) -> Tensor:
    """KL(a, b) of each row."""
    return (log_a.exp() * log_ratio(log_a, log_b)).sum(-1)


def log_mixture(log_a: Tensor, log_b: Tensor, weight: float) -> Tensor:
    """log((1 - weight) a + weight b), 0 < weight < 1."""
    live = (log_a > -math.inf) | (log_b > -math.inf)
    mixed = torch.logaddexp(
        torch.where(live, log_a, 0) + math.log1p(-weight), torch.where(live, log_b, 0) + math.log(weight)
    )
    return torch.where(live, mixed, -math.inf)
