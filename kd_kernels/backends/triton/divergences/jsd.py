"""Generalised Jensen-Shannon divergence; the twin of csrc/include/kd/divergences/jsd.h."""

import triton
import triton.language as tl

from kd_kernels.backends.triton.sides import log_and_share, ratios


@triton.jit
def jsd_term(p, q, d, beta, NEAR: tl.constexpr):
    rest = 1.0 - beta
    q_over_p, p_over_q, difference = ratios(p, q, d, NEAR)
    step = beta * rest * difference
    _, value_p = log_and_share(beta * p, step, rest * q_over_p, NEAR)
    log_m_over_q, value_q = log_and_share(rest * q, -step, beta * p_over_q, NEAR)
    return value_p + value_q, -rest * q * log_m_over_q
