"""ToDi; the twin of csrc/include/kd/divergences/todi.h."""

import triton
import triton.language as tl

from kd_kernels.backends.triton.elementary import FAR_DECAY, LOG2_E, decay
from kd_kernels.backends.triton.sides import finite, positive, sides


@triton.jit
def todi_near(p, q, d, beta, UNIT_BETA: tl.constexpr):
    below, big, x, _x_far, expm1, _phi, _psi = sides(p, q, d)
    if UNIT_BETA:
        beta_expm1 = expm1
    else:
        beta_expm1, _ = decay(tl.minimum(beta * x, FAR_DECAY))
    e = beta_expm1 + 1.0  # e^-beta x
    sigmoid = 1.0 / (e + 1.0)
    if UNIT_BETA:
        r = -expm1
    else:
        r = -tl.fma(expm1, beta_expm1, expm1 + beta_expm1) * sigmoid
    step = big * r
    q_weight = tl.where(below, e * sigmoid, sigmoid)  # 1 - w
    return step * x, tl.fma(q_weight * q, finite(d), tl.where(below, -step, step))


@triton.jit
def todi_far(p, q, d, beta, UNIT_BETA: tl.constexpr):
    if UNIT_BETA:
        q_weight = q / positive(p + q)
    else:
        e = tl.exp2(-beta * tl.abs(d) * LOG2_E)
        q_weight = tl.where(d <= 0.0, e, 1.0) / (e + 1.0)
    step = tl.fma(-(1.0 - q_weight), p, q_weight * q)  # (1 - w) q - w p
    return step * d, tl.fma(q_weight * q, finite(d), step)
