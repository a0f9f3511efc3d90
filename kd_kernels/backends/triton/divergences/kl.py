"""KL(p, q), KL(q, p) and their weighted sums; the twin of csrc/include/kd/divergences/kl.h."""

import triton
import triton.language as tl

from kd_kernels.backends.triton.sides import finite, sides


@triton.jit
def kl_terms(p, q, d):
    """An entry's share of KL(p, q) and of KL(q, p), and q - p, each to relative precision."""
    below, big, x, x_far, _ratio, expm1, phi, psi = sides(p, q, d)
    phi = phi + (x - x_far)  # infinite for an entry that one side forbids
    m = big * expm1
    return big * tl.where(below, phi, psi), big * tl.where(below, psi, phi), tl.where(below, m, -m)


@triton.jit
def kl_near(p, q, d, forward, reverse, FORWARD: tl.constexpr, REVERSE: tl.constexpr):
    of_forward, of_reverse, difference = kl_terms(p, q, d)
    value = tl.zeros_like(p)
    h = tl.zeros_like(p)
    if FORWARD:
        value += tl.where(forward > 0, forward * of_forward, 0.0)
        h += forward * difference
    if REVERSE:
        value += tl.where(reverse > 0, reverse * of_reverse, 0.0)
        h = tl.fma(reverse * q, finite(d), h)
    return value, h


@triton.jit
def kl_far(p, q, d_less_mean, forward, reverse, FORWARD: tl.constexpr, REVERSE: tl.constexpr):
    """h less q sum h. Far rows have their value from the first sweep, and the mean of d under q."""
    h = tl.zeros_like(p)
    if FORWARD:
        h += forward * (q - p)
    if REVERSE:
        h = tl.fma(reverse * q, d_less_mean, h)
    return h
