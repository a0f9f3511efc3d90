"""ToDi; the twin of csrc/include/kd/divergences/todi.h."""

import triton
import triton.language as tl

from kd_kernels.backends.triton.elementary import FAR_DECAY, LOG2_E, TINY, decay
from kd_kernels.backends.triton.sides import finite, sides


@triton.jit
def _value(step, d):
    """0 * inf, where an entry that the other side forbids is too small for its half, has the limit of the value."""
    return tl.where(step == 0.0, 0.0, step * d)


@triton.jit
def todi_near(p, q, d, beta, UNIT_BETA: tl.constexpr):
    below, big, x, _x_far, e, expm1, _phi, _psi = sides(p, q, d)
    r = -expm1  # at beta = 1
    if not UNIT_BETA:
        e, power_expm1, _ = decay(tl.minimum(beta * finite(x), FAR_DECAY))  # e^-beta x
        r = -tl.fma(expm1, power_expm1, expm1 + power_expm1)  # 1 - e^-(1 + beta) x
    sigmoid = 1.0 / (e + 1.0)
    if not UNIT_BETA:
        r = r * sigmoid
    step = big * r
    q_weight = tl.where(below, e * sigmoid, sigmoid)  # 1 - w
    return _value(step, x), tl.fma(q_weight * q, finite(d), tl.where(below, -step, step))


@triton.jit
def todi_far(p, q, d, beta, UNIT_BETA: tl.constexpr):
    if UNIT_BETA:
        q_weight = q / tl.maximum(p + q, TINY)
    else:
        e = tl.exp2(-beta * tl.abs(finite(d)) * LOG2_E)
        q_weight = tl.where(d <= 0.0, e, 1.0) / (e + 1.0)
    step = tl.fma(-(1.0 - q_weight), p, q_weight * q)  # (1 - w) q - w p
    return _value(step, d), tl.fma(q_weight * q, finite(d), step)
