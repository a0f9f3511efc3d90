"""AKL's split of the vocabulary by the teacher; the twin of csrc/cpu/akl_split.h.

A row does not fit in registers, so the crossing entry is found by bisection on the bits of the teacher's logits, two
bits a sweep, with the mass at or above each candidate for the test.
"""

import triton
import triton.language as tl

from kd_kernels.backends.triton.row_sweeps import load_row, probabilities


@triton.jit
def order_key(z):
    """uint32 in the order of the float32 z, zeros of both signs alike."""
    bits = (z + 0.0).to(tl.int32, bitcast=True)
    return tl.where(bits < 0, ~bits, bits | -2147483648).to(tl.uint32, bitcast=True)


@triton.jit
def head_weight(zs, zt, columns, state, mu, KEY_BITS: tl.constexpr, BLOCK: tl.constexpr):
    """g_head / (g_head + g_tail). KEY_BITS: leading bits of the key that can differ between logits of their dtype."""
    _, k2_t, _, off_t, _, inv_t, _, _, _, _, _, _ = state
    # The largest key with more than mu of the mass at or above it, built from its highest bits down.
    crossing = tl.zeros([], tl.uint32)
    unit = tl.full([], 1 << 30, tl.uint32)
    for _ in range(KEY_BITS // 2):
        mass_1 = tl.zeros([BLOCK], tl.float32)
        mass_2 = tl.zeros([BLOCK], tl.float32)
        mass_3 = tl.zeros([BLOCK], tl.float32)
        for start in range(0, columns, BLOCK):
            offsets = start + tl.arange(0, BLOCK)
            y = load_row(zt, offsets, columns)
            key = order_key(y)
            e = tl.exp2(tl.fma(y, k2_t, off_t))
            mass_1 += tl.where(key >= crossing + unit, e, 0.0)
            mass_2 += tl.where(key >= crossing + 2 * unit, e, 0.0)
            mass_3 += tl.where(key >= crossing + 3 * unit, e, 0.0)
        over_1 = tl.sum(mass_1, axis=0) * inv_t > mu
        over_2 = tl.sum(mass_2, axis=0) * inv_t > mu
        over_3 = tl.sum(mass_3, axis=0) * inv_t > mu
        crossing += unit * (over_1.to(tl.uint32) + over_2.to(tl.uint32) + over_3.to(tl.uint32))
        unit = unit >> 2

    # Entries of the crossing's own value are taken into the head in order of index while they fit.
    larger = tl.zeros([BLOCK], tl.float32)
    value = tl.zeros([BLOCK], tl.float32)
    for start in range(0, columns, BLOCK):
        offsets = start + tl.arange(0, BLOCK)
        y = load_row(zt, offsets, columns)
        p = tl.exp2(tl.fma(y, k2_t, off_t)) * inv_t
        key = _crossing_key(y, KEY_BITS)
        larger += tl.where(key > crossing, p, 0.0)
        value = tl.maximum(value, tl.where(key == crossing, p, 0.0))
    above = tl.sum(larger, axis=0)
    room = tl.floor((mu - above) / tl.max(value, axis=0))
    room = tl.where(above == 0.0, tl.maximum(room, 1.0), tl.maximum(room, 0.0))  # the first entry is always head
    head = tl.zeros([BLOCK], tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    seen = tl.zeros([], tl.float32)
    for start in range(0, columns, BLOCK):
        offsets = start + tl.arange(0, BLOCK)
        p, q, _x, y = probabilities(zs, zt, offsets, columns, state)
        key = _crossing_key(y, KEY_BITS)
        tie = (key == crossing).to(tl.float32)
        rank = seen + tl.cumsum(tie, axis=0)
        seen += tl.sum(tie, axis=0)
        gap = tl.abs(p - q)
        total += gap
        head += tl.where((key > crossing) | ((tie > 0) & (rank <= room)), gap, 0.0)
    g_head = tl.sum(head, axis=0)
    g = tl.sum(total, axis=0)
    return tl.where(g > 0, g_head / g, 0.5)


@triton.jit
def _crossing_key(y, KEY_BITS: tl.constexpr):
    """The key with the bits below KEY_BITS cleared, as `crossing` has them."""
    return (order_key(y) >> (32 - KEY_BITS)) << (32 - KEY_BITS)
