"""One side against m = (1 - b) p + b q; the twin of csrc/include/kd/divergences/mixture_kl.h."""

import triton
import triton.language as tl

from kd_kernels.backends.triton.sides import log_and_share, ratios


@triton.jit
def mixture_kl_term(p, q, d, b, OF_STUDENT: tl.constexpr, NEAR: tl.constexpr):
    q_over_p, p_over_q, difference = ratios(p, q, d, NEAR)
    if OF_STUDENT:
        rest = 1.0 - b
        y = rest * p_over_q  # m / q - 1
        log_m, value = log_and_share(q, -rest * difference, y, NEAR)
        return value, q * (b * y / (y + 1.0) - log_m)
    else:
        y = b * q_over_p
        _, value = log_and_share(p, b * difference, y, NEAR)
        numerator = y if NEAR else -1.0
        return value, b * q * numerator / (y + 1.0)
