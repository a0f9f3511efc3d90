"""One side against m = (1 - b) p + b q; the twin of csrc/include/kd/divergences/mixture_kl.h."""

import triton
import triton.language as tl

from kd_kernels.backends.triton.elementary import log, log1p
from kd_kernels.backends.triton.sides import positive, sides


@triton.jit
def mixture_kl_near(p, q, d, b, OF_STUDENT: tl.constexpr):
    below, big, _x, x_far, expm1, _phi, psi = sides(p, q, d)
    rest = 1.0 - b
    y = tl.where(below, b, rest) * expm1
    log_m, of_big = log1p(y)  # log(m / big), and KL's term of the big side over big
    of_small = tl.fma(expm1 + 1.0, of_big, tl.fma(-expm1, y, psi))
    inverse = 1.0 / (y + 1.0)  # big / m
    if OF_STUDENT:
        g_small = -tl.fma(b * rest * expm1, inverse, x_far + log_m)
        g_big = tl.fma(b * y, inverse, -log_m)
        value = big * tl.where(below, of_small, of_big)
        h = q * tl.where(below, g_small, g_big)
    else:
        g = b * b * expm1 * inverse
        value = big * tl.where(below, of_big, of_small)
        h = q * tl.where(below, g, -g)
    return value, h


@triton.jit
def mixture_kl_far(p, q, log_p, log_q, b, OF_STUDENT: tl.constexpr):
    m = positive(tl.fma(b, q, (1.0 - b) * p))
    q_over_m = q / m
    if OF_STUDENT:
        log_ratio = log_q - log(m)
        value = q * log_ratio
        h = q * (log_ratio + tl.fma(-b, q_over_m, b))
    else:
        value = p * (log_p - log(m))
        h = b * tl.fma(-p, q_over_m, q)
    return value, h
