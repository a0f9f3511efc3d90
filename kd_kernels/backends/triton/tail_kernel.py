"""Sweeps over one row that has a list of entries; the others are its tail. The twin of csrc/cpu/tail.h.

The sum is over the tail alone: as a difference of two sums over the row it would be lost where the list holds nearly
all of the mass.
"""

import triton
import triton.language as tl

from kd_kernels.backends.triton.elementary import LN2, LOG2_E

# Exponentials above 2^24 of an offset carry its rounding and that of their argument: more than an epsilon or two.
HIGHEST_SUM = tl.constexpr(2.0**24)
NO_ID = tl.constexpr(2**31 - 1)  # sorts behind every id


@triton.jit
def _load_tail(z, ids, at, start, columns, slots, BLOCK: tl.constexpr):
    """A block's logits, -inf for those listed, and where in the list the ids of the next block begin.

    ids: ascending. A block is compared with its own ids alone, which makes K comparisons of a block in a sweep.
    """
    offsets = start + tl.arange(0, BLOCK)
    x = tl.load(z + offsets, mask=offsets < columns, other=float("-inf")).to(tl.float32)
    listed = tl.load(ids + at, mask=at < slots, other=NO_ID)
    while listed < start + BLOCK:
        x = tl.where(offsets == listed, float("-inf"), x)
        at += 1
        listed = tl.load(ids + at, mask=at < slots, other=NO_ID)
    return x, at


@triton.jit
def _tail_max(z, ids, columns, slots, BLOCK: tl.constexpr):
    """The largest logit of the tail, 0 where that is nothing."""
    top = tl.full([BLOCK], float("-inf"), tl.float32)
    at = tl.zeros([], tl.int32)
    for start in range(0, columns, BLOCK):
        x, at = _load_tail(z, ids, at, start, columns, slots, BLOCK)
        top = tl.maximum(top, x)
    highest = tl.max(top, axis=0)
    return tl.where(highest == float("-inf"), 0.0, highest)


@triton.jit
def _tail_sum(z, ids, columns, slots, top, rate, BLOCK: tl.constexpr):
    """sum 2^((z - top) rate) over the tail."""
    total = tl.zeros([BLOCK], tl.float32)
    at = tl.zeros([], tl.int32)
    for start in range(0, columns, BLOCK):
        x, at = _load_tail(z, ids, at, start, columns, slots, BLOCK)
        total += tl.exp2((x - top) * rate)
    return tl.sum(total, axis=0)


@triton.jit
def tail_logits_kernel(
    logits, ids, weight, tail,  # (N, V), (N, K) ascending, (N,), (N,)
    columns, slots, stride, inverse_temperature, rate,
    HAS_WEIGHT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """tail[row] = log sum exp(z / T) over the tail; -inf for one of nothing, NaN where it holds NaN or +inf.

    rate: log2(e) / T. The exponentials are of differences to the tail's largest logit in the first block; where that
    says little about the sum, to its true maximum.
    """
    row = tl.program_id(0).to(tl.int64)  # rows times columns passes 2^31
    z = logits + row * stride
    ids += row * slots
    row_weight = 1.0
    if HAS_WEIGHT:
        row_weight = tl.load(weight + row)
    if row_weight == 0.0:  # the row is not read: it may hold anything
        tl.store(tail + row, 0.0)
    else:
        top = _tail_max(z, ids, tl.minimum(columns, BLOCK), slots, BLOCK)
        total = _tail_sum(z, ids, columns, slots, top, rate, BLOCK)
        if not (total >= 0.5 and total < HIGHEST_SUM):
            top = _tail_max(z, ids, columns, slots, BLOCK)
            total = _tail_sum(z, ids, columns, slots, top, rate, BLOCK)
        tl.store(tail + row, tl.fma(top, inverse_temperature, tl.log2(total) * LN2))


@triton.jit
def tail_gradient_kernel(
    logits, weight, tail, tail_factor, gradient,  # (N, V), (N,), (N,), (N,), (N, V)
    columns, width, stride, gradient_stride, inverse_temperature, rate,
    HAS_WEIGHT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """gradient = tail_factor exp(z / T - tail), the listed entries too; `gradient` may be `logits`.

    The difference is taken between logits, near T tail and before any product: heights far from 0 cost it nothing.
    """
    row = tl.program_id(0).to(tl.int64)
    z = logits + row * stride
    gradient += row * gradient_stride
    row_tail = tl.load(tail + row)
    factor = tl.load(tail_factor + row)
    has_tail = (factor != 0.0) & (row_tail != float("-inf"))
    if HAS_WEIGHT:
        has_tail = has_tail & (tl.load(weight + row) != 0.0)
    end = tl.where(has_tail, columns, 0)
    centre = row_tail / inverse_temperature
    offset = tl.fma(centre, inverse_temperature, -row_tail) * LOG2_E
    for start in range(0, width, BLOCK):
        offsets = start + tl.arange(0, BLOCK)
        x = tl.load(z + offsets, mask=offsets < end, other=0.0).to(tl.float32) - centre
        result = tl.where(offsets < end, factor * tl.exp2(tl.fma(x, rate, offset)), 0.0)
        tl.store(gradient + offsets, result.to(gradient.dtype.element_ty), mask=offsets < width)


@triton.jit
def listed_gradient_kernel(
    ids, weight, entries, gradient,  # (N, K), (N,), (N, K), (N, V)
    columns, slots, gradient_stride,
    HAS_WEIGHT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """gradient[row, ids] = entries, where an id is inside [0, columns).

    A launch of its own, after the sweep: that has then read every logit and written every entry, while within a program
    another thread's store to the same entry could come later.
    """
    row = tl.program_id(0).to(tl.int64)
    ids += row * slots
    entries += row * slots
    gradient += row * gradient_stride
    end = slots
    if HAS_WEIGHT:
        end = tl.where(tl.load(weight + row) != 0.0, slots, 0)
    for start in range(0, end, BLOCK):
        offsets = start + tl.arange(0, BLOCK)
        listed = tl.load(ids + offsets, mask=offsets < end, other=-1)
        entry = tl.load(entries + offsets, mask=offsets < end, other=0.0)
        inside = (listed >= 0) & (listed < columns)
        tl.store(gradient + listed, entry.to(gradient.dtype.element_ty), mask=inside)
