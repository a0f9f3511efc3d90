"""Total variation distance; the twin of csrc/include/kd/divergences/tvd.h."""

import triton
import triton.language as tl

from kd_kernels.backends.triton.sides import difference


@triton.jit
def tvd_term(step, q):
    """step = q - p."""
    half = 0.5 * q
    h = tl.where(step < 0.0, -half, half)
    return 0.5 * tl.abs(step), tl.where(step == 0.0, 0.0, h)


@triton.jit
def tvd_near(p, q, d):
    return tvd_term(difference(p, q, d), q)


@triton.jit
def tvd_far(p, q):
    return tvd_term(q - p, q)
