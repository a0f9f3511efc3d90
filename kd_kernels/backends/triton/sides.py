"""One vocabulary entry as the divergences see it; the twin of csrc/include/kd/divergence.h.

Every divergence gives for an entry its value and h = q dL/dq, in a near form that keeps every digit and a far form, the
textbook's, that costs less.
"""

import triton
import triton.language as tl

from kd_kernels.backends.triton.elementary import FAR_DECAY, TINY, decay

INFINITE_LOG_RATIO = tl.constexpr(2e30)
INFINITE_SUM = tl.constexpr(1e30)


@triton.jit
def sides(p, q, d):
    """below (q <= p), big = max(p, q), |d|, |d| bounded, and of e = small / big: e - 1, e - 1 + |d|, 1 - e (1 + |d|)."""
    x = tl.abs(d)
    x_far = tl.minimum(x, FAR_DECAY)
    expm1, phi = decay(x_far)
    return d <= 0.0, tl.maximum(p, q), x, x_far, expm1, phi, -tl.fma(x_far, expm1, phi)


@triton.jit
def difference(p, q, d):
    """q - p to relative precision."""
    below, big, _x, _x_far, expm1, _phi, _psi = sides(p, q, d)
    m = big * expm1
    return tl.where(below, m, -m)


@triton.jit
def finite(d):
    """log q - log p as a factor of q or p in a gradient."""
    return tl.maximum(tl.minimum(d, INFINITE_LOG_RATIO), -INFINITE_LOG_RATIO)


@triton.jit
def positive(p):
    return tl.maximum(p, TINY)
