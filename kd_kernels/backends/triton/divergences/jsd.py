"""Generalised Jensen-Shannon divergence; the twin of csrc/include/kd/divergences/jsd.h."""

import triton
import triton.language as tl

from kd_kernels.backends.triton.elementary import log, log1p
from kd_kernels.backends.triton.sides import positive, sides


@triton.jit
def jsd_near(p, q, d, beta):
    below, big, _x, x_far, expm1, _phi, psi = sides(p, q, d)
    rest = 1.0 - beta
    c = tl.where(below, rest, beta)
    y = c * expm1
    log_m, gap = log1p(y)  # log(m / big)
    omega = tl.fma(-(y + 1.0), gap, y * y)
    log_m_over_q = tl.where(below, x_far + log_m, log_m)
    return big * tl.fma(c, psi, -omega), -rest * q * log_m_over_q


@triton.jit
def jsd_far(p, q, log_p, log_q, beta):
    rest = 1.0 - beta
    log_m = log(positive(tl.fma(rest, q, beta * p)))
    h = rest * q * (log_q - log_m)
    return tl.fma(beta * p, log_p - log_m, h), h
