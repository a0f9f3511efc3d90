"""Sweeps of one program over its row pair; the twin of csrc/cpu/row_sweeps.h, which keeps the exponentials that these
compute again.

A row's scalars travel as one tuple, `state` (constants stand on the right of products: the interpreter wants a tensor
on the left):
    k2_s, k2_t   log2(e) / T                     off_s, off_t   log2 of an entry's exponential is z k2 + off
    inv_s, inv_t  1 / sum of exponentials
    shift_s, shift_t, ratio, rate, gap            d = ((z_s - shift_s) - ratio (z_t - shift_t)) rate - gap
    mean                                          of log2 (e_s / e_t) under q, where the reverse KL was asked for
"""

import triton
import triton.language as tl

from kd_kernels.backends.triton.elementary import LN2
from kd_kernels.backends.triton.sides import INFINITE_MEAN, difference, finite

BEYOND = tl.constexpr(-1e30)  # stands for entries beyond the row's end: exponential 0, differences finite
NEAR_HEIGHT = tl.constexpr(64.0)


@triton.jit
def load_row(z, offsets, columns):
    inside = offsets < columns
    return tl.where(inside, tl.load(z + offsets, mask=inside, other=0.0).to(tl.float32), BEYOND)


@triton.jit
def row_max(z, columns, BLOCK: tl.constexpr):
    top = tl.full([BLOCK], float("-inf"), tl.float32)
    for start in range(0, columns, BLOCK):
        offsets = start + tl.arange(0, BLOCK)
        inside = offsets < columns
        top = tl.maximum(top, tl.load(z + offsets, mask=inside, other=float("-inf")).to(tl.float32))
    return tl.max(top, axis=0)


@triton.jit
def exponential_sums(
    zs, zt, columns, k2_s, k2_t, off_s, off_t,
    FORWARD: tl.constexpr, REVERSE: tl.constexpr, CAREFUL: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """sum e_s, sum e_t, sum e_t log2(e_t / e_s), sum e_s log2(e_s / e_t).

    CAREFUL gives an entry that is -inf on one side or both its limit; without it such an entry, or an offset so low
    that a sum overflows, shows as a sum that is not finite.
    """
    sum_s = tl.zeros([BLOCK], tl.float32)
    sum_t = tl.zeros([BLOCK], tl.float32)
    forward = tl.zeros([BLOCK], tl.float32)
    reverse = tl.zeros([BLOCK], tl.float32)
    for start in range(0, columns, BLOCK):
        offsets = start + tl.arange(0, BLOCK)
        x = tl.fma(load_row(zs, offsets, columns), k2_s, off_s)
        y = tl.fma(load_row(zt, offsets, columns), k2_t, off_t)
        e_s = tl.exp2(x)
        e_t = tl.exp2(y)
        sum_s += e_s
        sum_t += e_t
        d = y - x
        if FORWARD:
            forward = tl.fma(e_t, tl.where(e_t > 0, d, 0.0) if CAREFUL else d, forward)
        if REVERSE:
            reverse = tl.fma(-e_s, tl.where(e_s > 0, d, 0.0) if CAREFUL else d, reverse)
    return tl.sum(sum_s, axis=0), tl.sum(sum_t, axis=0), tl.sum(forward, axis=0), tl.sum(reverse, axis=0)


@triton.jit
def _safe(x):
    return tl.abs(x) < 1e30


@triton.jit
def measure(top_s, top_t, k2_s, k2_t, off_s, off_t, log2_ratio, rate, ratio):
    """shift_s, shift_t, gap: what the log-ratio of an entry is measured from. Tops: the largest logits."""
    # The offset is not exactly -top k2, and the remainder belongs to the log-sum-exp.
    remainder = tl.fma(top_s, k2_s, off_s) - tl.fma(top_t, k2_t, off_t)
    apart = tl.fma(-ratio, top_t, top_s) * rate
    # Logits of the same height are subtracted as they are, which is exact where they are close; otherwise each from its
    # own top, so that a large common offset on one side does not round the other side away.
    near = tl.abs(apart) < NEAR_HEIGHT
    gap = (log2_ratio - remainder) * LN2 + tl.where(near, apart, 0.0)
    shift_s = tl.where(near, 0.0, top_s)
    shift_t = tl.where(near, 0.0, top_t)
    return shift_s, shift_t, gap


@triton.jit
def normalise(
    zs, zt, columns, k2_s, k2_t, rate, ratio,
    FORWARD: tl.constexpr, REVERSE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """First sweep: -> state, KL(p, q), KL(q, p), the KLs right to about 1e-7 absolute.

    The offsets come from the largest logit of the first block: any entry may exceed it by 2^100 before a sum is in
    danger, and then the row is swept again from its true maximum.
    """
    head = tl.arange(0, BLOCK)
    top_s = tl.max(load_row(zs, head, columns), axis=0)
    top_t = tl.max(load_row(zt, head, columns), axis=0)
    off_s = -top_s * k2_s
    off_t = -top_t * k2_t
    sum_s, sum_t, forward, reverse = exponential_sums(
        zs, zt, columns, k2_s, k2_t, off_s, off_t, FORWARD, REVERSE, False, BLOCK
    )
    if not (_safe(sum_s) and _safe(sum_t) and _safe(forward) and _safe(reverse)):
        top_s = row_max(zs, columns, BLOCK)
        top_t = row_max(zt, columns, BLOCK)
        off_s = -top_s * k2_s
        off_t = -top_t * k2_t
        sum_s, sum_t, forward, reverse = exponential_sums(
            zs, zt, columns, k2_s, k2_t, off_s, off_t, FORWARD, REVERSE, True, BLOCK
        )
    log2_ratio = tl.log2(sum_s / sum_t)
    mean = tl.minimum(reverse / sum_s, INFINITE_MEAN)
    forward = (forward / sum_t + log2_ratio) * LN2
    reverse = (reverse / sum_s - log2_ratio) * LN2

    shift_s, shift_t, gap = measure(top_s, top_t, k2_s, k2_t, off_s, off_t, log2_ratio, rate, ratio)
    state = (
        k2_s, k2_t, off_s, off_t, 1.0 / sum_s, 1.0 / sum_t, shift_s, shift_t, ratio, rate, gap, mean,
    )  # fmt: skip
    return state, forward, reverse


@triton.jit
def probabilities(zs, zt, offsets, columns, state):
    """p, q and the logits they come from."""
    k2_s, k2_t, off_s, off_t, inv_s, inv_t, _, _, _, _, _, _ = state
    x = load_row(zs, offsets, columns)
    y = load_row(zt, offsets, columns)
    return tl.exp2(tl.fma(y, k2_t, off_t)) * inv_t, tl.exp2(tl.fma(x, k2_s, off_s)) * inv_s, x, y


@triton.jit
def log_ratio(p, q, x, y, state):
    """d = log q - log p; +-inf where one side is -inf, 0 where p = q = 0."""
    _, _, _, _, _, _, shift_s, shift_t, ratio, rate, gap, _ = state
    d = tl.fma(tl.fma(-ratio, y - shift_t, x - shift_s), rate, -gap)
    return tl.where(tl.maximum(p, q) > 0, d, 0.0)


@triton.jit
def centred_log_ratio(x, y, state):
    """d less its mean under q, taken from the sum of the very same floats: it vanishes where q is certain."""
    k2_s, k2_t, off_s, off_t, _, _, _, _, _, _, _, mean = state
    return (finite(tl.fma(x, k2_s, off_s) - tl.fma(y, k2_t, off_t)) - mean) * LN2


@triton.jit
def gap_residue(zs, zt, columns, state, BLOCK: tl.constexpr):
    """sum of q - p, each to relative precision: e^x - 1 of the x by which `gap` is off (refine_gap in row_sweeps.h)."""
    residue = tl.zeros([BLOCK], tl.float32)
    for start in range(0, columns, BLOCK):
        offsets = start + tl.arange(0, BLOCK)
        p, q, x, y = probabilities(zs, zt, offsets, columns, state)
        residue += difference(p, q, log_ratio(p, q, x, y, state))
    return tl.sum(residue, axis=0)
