"""Entropic transport between two distributions over one vocabulary, where moving mass costs 1 wherever it goes.

The kernel exp(-C / eps) = w 1 1^T + (1 - w) I, w = exp(-1 / eps), is a sum and a diagonal: with it an iteration takes a
few sweeps of the vocabulary instead of V^2. From all ones v and V = sum v, each iteration is

    x = w V + (1 - w) v,  u = q / x,  U = sum u,   y = w U + (1 - w) u,  v = p / y,  V = sum v,

and <P, C> = w sum_i u_i (V - v_i), of positive terms. x and y of every iteration give its derivative by q.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from kd_kernels.reduction import sum_dtype

# Numbers of the x and y that are kept at a time: what the cache of a CPU holds, and what keeps a GPU busy.
_ELEMENTS = 1 << 21
_ELEMENTS_ON_GPU = 1 << 26

# Scalings lie within exp(+-2 / eps): below this they leave float32, and at MIN_EPS float64.
_SINGLE_EPS = 0.05
MIN_EPS, MAX_EPS = 0.005, 1e6


def smoothed_tvd(
    student: Tensor,  # (N, V)
    teacher: Tensor,  # (N, V)
    factor: Tensor | None,  # (N,): what the gradients of rows are multiplied by; a row of factor 0 is not read
    inverse_temperatures: list[float],
    eps: float,
    iterations: int,
    with_gradient: bool,
) -> tuple[Tensor, Tensor]:
    """-> <P, C> of each row (N,), 0 where the factor is; gradient (N, V) of the student's dtype, or [0]."""
    rows, vocabulary = student.shape
    loss = student.new_empty(rows, dtype=sum_dtype(student.dtype))
    gradient = student.new_empty(student.shape if with_gradient else (0,))
    real = loss.dtype if eps >= _SINGLE_EPS else torch.float64
    kept = 2 * iterations if with_gradient else 2
    elements = _ELEMENTS if student.device.type == "cpu" else _ELEMENTS_ON_GPU
    step = max(1, elements // (kept * vocabulary))
    for start in range(0, rows, step):
        part = slice(start, start + step)
        read = None if factor is None else (factor[part] != 0)[:, None]
        q, p = (
            _softmax(x[part], read, rate, real)
            for x, rate in zip((student, teacher), inverse_temperatures, strict=True)
        )
        weight = math.exp(-1 / eps)
        scalings = _iterate(q, p, weight, iterations, with_gradient)
        cost = weight * (scalings.u * (scalings.of_v - scalings.v)).sum(1)
        loss[part] = cost if read is None else torch.where(read[:, 0], cost, 0)
        if with_gradient:
            of_q = _derivative(scalings, weight)
            dz = q * (of_q - (q * of_q).sum(1, keepdim=True)) * inverse_temperatures[0]
            if factor is not None:
                dz = torch.where(read, dz * factor[part, None], 0)
            gradient[part] = dz
    return loss, gradient


class _Scalings(NamedTuple):
    u: Tensor  # (n, V)
    v: Tensor  # (n, V)
    of_u: Tensor  # (n, 1): the sums
    of_v: Tensor  # (n, 1)
    q: Tensor  # (n, V)
    p: Tensor  # (n, V)
    history: list[tuple[Tensor, Tensor]]  # x, y of each iteration, if wanted


def _softmax(logits: Tensor, read: Tensor | None, rate: float, real: torch.dtype) -> Tensor:
    kept = logits if read is None else torch.where(read, logits, 0)
    return (kept.to(real) * rate).softmax(1)


def _iterate(q: Tensor, p: Tensor, weight: float, iterations: int, with_history: bool) -> _Scalings:
    v, history = torch.ones_like(q), []
    of_v = v.sum(1, keepdim=True)
    for _ in range(iterations):
        x = weight * of_v + (1 - weight) * v
        u = q / x
        of_u = u.sum(1, keepdim=True)
        y = weight * of_u + (1 - weight) * u
        v = p / y
        of_v = v.sum(1, keepdim=True)
        if with_history:
            history.append((x, y))
    return _Scalings(u, v, of_u, of_v, q, p, history)


def _derivative(s: _Scalings, weight: float) -> Tensor:
    """d<P, C>/dq (n, V), through the iterations."""

    def through_kernel(g: Tensor) -> Tensor:  # K^T g, and K is symmetric
        return (1 - weight) * g + weight * g.sum(1, keepdim=True)

    of_q = torch.zeros_like(s.q)
    u_bar, v_bar = weight * (s.of_v - s.v), weight * (s.of_u - s.u)
    for x, y in reversed(s.history):
        u_bar = u_bar - through_kernel(v_bar * s.p / y.square())
        of_q += u_bar / x
        v_bar = -through_kernel(u_bar * s.q / x.square())
        u_bar = 0
    return of_q
