"""The merge of what the slices of a row know into what is known of the row.

With P_i, Q_i the masses of slice i and p|i, q|i its distributions, KL(p, q) = sum P_i KL(p|i, q|i) + KL(P, Q). Every
slice gives its own KL and log-ratio of masses to relative precision, and the KL of the masses takes the near form of
docs/numerics.md, so that nothing cancels where the sides are close, however the vocabulary is cut.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from kd_kernels.slice_rows import SliceStatistics


class Whole(NamedTuple):
    """Of whole rows, each `[N]` float64.

    Attributes:
        top_student, top_teacher: the largest logit.
        mass_student, mass_teacher: sum e^((z - top) / T); 0 or not finite where a softmax does not exist.
        gap: (z_s - ratio z_t) k - (log q - log p), the same for every entry.
        forward, reverse: KL(p, q) and KL(q, p).
        entropy_student, entropy_teacher: in nats.
    """

    top_student: Tensor
    top_teacher: Tensor
    mass_student: Tensor
    mass_teacher: Tensor
    gap: Tensor
    forward: Tensor
    reverse: Tensor
    entropy_student: Tensor
    entropy_teacher: Tensor


def total(x: Tensor) -> Tensor:
    """Sum over slices `[slices, ...]`, in pairs: an order that does not depend on the number of rows."""
    while x.shape[0] > 1:
        half = x.shape[0] // 2
        x = torch.cat([x[:half] + x[half : 2 * half], x[2 * half :]])
    return x[0]


def merge(statistics: Tensor, k: float, ratio: float) -> Whole:
    """What the statistics of all slices, `[slices, fields, N]` float64, say of the rows.

    k is 1 / T of the student and ratio T of the student / T of the teacher, rounded as the kernels round them.
    """
    part = SliceStatistics(*statistics.unbind(1))  # each (slices, N)
    top_s, top_t = part.top_student.amax(0), part.top_teacher.amax(0)
    mass_s, q, log_q = _masses((part.top_student - top_s) * k, part.sum_student)
    mass_t, p, log_p = _masses((part.top_teacher - top_t) * (ratio * k), part.sum_teacher)

    # e^gap is the mean of the slices' own under P, taken about the gap of the masses, which is right to their rounding.
    rough = (mass_s / mass_t).log() + (top_s - ratio * top_t) * k
    late = _log1p(part.residue)
    shift = (part.shift_student - ratio * part.shift_teacher) * k
    gaps = torch.where((part.sum_student > 0) & (part.sum_teacher > 0), part.gap + shift + late, rough + log_q - log_p)
    delta = _where(p + q > 0, gaps - rough)
    gap = rough + _log1p(total(torch.where(delta.abs() < 1, p * delta.expm1(), q - p)))

    delta = _where(p + q > 0, gaps - gap)
    near = delta.abs() < 1
    forward = torch.where(near, p * _bend(delta), q - p - _where(p > 0, p * delta))
    reverse = torch.where(near, q * _bend(-delta), p - q + _where(q > 0, q * delta))
    return Whole(
        top_s,
        top_t,
        mass_s,
        mass_t,
        gap,
        total(forward + _where(p > 0, p * (part.forward - _bend(late)))),
        total(reverse + _where(q > 0, q * (part.reverse - _bend(-late)))),
        total(_where(q > 0, q * (part.entropy_student - log_q))),
        total(_where(p > 0, p * (part.entropy_teacher - log_p))),
    )


def _masses(height: Tensor, mass: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of masses e^height mass, heights at most 0: their sum, their shares of it, and the logarithms of those."""
    scaled = height.exp() * mass
    whole = total(scaled)
    return whole, scaled / whole, height + (mass / whole).log()


def _bend(x: Tensor) -> Tensor:
    """e^x - 1 - x."""
    return x.expm1() - x


def _log1p(residue: Tensor) -> Tensor:
    """Beyond these bounds a residue is no rounding, and its row is far."""
    return _where((residue > -0.5) & (residue < 1), residue.log1p())


def _where(condition: Tensor, x: Tensor) -> Tensor:
    """x, or 0, its limit, which the formula for it may miss."""
    return torch.where(condition, x, 0.0)
