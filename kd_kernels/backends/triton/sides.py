"""One vocabulary entry as the divergences see it; the twin of csrc/include/kd/divergence.h.

Every divergence gives for an entry its value and h = q dL/dq, in a near form that keeps every digit and a far form that
works from the probabilities and costs less.
"""

import triton
import triton.language as tl

from kd_kernels.backends.triton.elementary import FAR_DECAY, TINY, decay, log, log1p

INFINITE_LOG_RATIO = tl.constexpr(2e30)
INFINITE_MEAN = tl.constexpr(1e30)


@triton.jit
def sides(p, q, d):
    """below (q <= p), big = max(p, q), x = |d|, x bounded, and of e = small / big: e, e - 1, e - 1 + x, 1 - e - e x."""
    x = tl.abs(d)
    x_far = tl.minimum(x, FAR_DECAY)
    ratio, expm1, phi = decay(x_far)
    return d <= 0.0, tl.maximum(p, q), x, x_far, ratio, expm1, phi, -tl.fma(x_far, expm1, phi)


@triton.jit
def difference(p, q, d):
    """q - p to relative precision."""
    below, big, _x, _x_far, _ratio, expm1, _phi, _psi = sides(p, q, d)
    m = big * expm1
    return tl.where(below, m, -m)


@triton.jit
def ratios(p, q, d, NEAR: tl.constexpr):
    """q / p - 1, p / q - 1, finite, and q - p."""
    if NEAR:
        below, big, _x, _x_far, ratio, expm1, _phi, _psi = sides(p, q, d)
        above = -expm1 / ratio  # e^x - 1
        m = big * expm1
        return tl.where(below, expm1, above), tl.where(below, above, expm1), tl.where(below, m, -m)
    else:
        return (q - p) / tl.maximum(p, TINY), (p - q) / tl.maximum(q, TINY), q - p


@triton.jit
def log_and_share(a, m_less_a, y, NEAR: tl.constexpr):
    """log(1 + y), and an entry's share of sum a log(a / m), m = a (1 + y), of which sum (m - a) = 0 may be added."""
    if NEAR:
        value, gap = log1p(y)
        # Where m is much larger than a, y has lost what m - a still has: a may even have underflowed to 0.
        return value, tl.where(y > 1.0, tl.fma(-a, value, m_less_a), a * gap)
    else:
        value = log(y + 1.0)
        return value, -a * value


@triton.jit
def finite(d):
    """log q - log p as a factor of q or p in a gradient."""
    return tl.maximum(tl.minimum(d, INFINITE_LOG_RATIO), -INFINITE_LOG_RATIO)
