"""One row of a divergence from start to end, one program a row; the twin of csrc/cpu/row_kernel.h."""

import triton
import triton.language as tl

from kd_kernels.backends.triton.divergences.akl import head_weight
from kd_kernels.backends.triton.divergences.jsd import jsd_term
from kd_kernels.backends.triton.divergences.kl import kl_far, kl_near
from kd_kernels.backends.triton.divergences.mixture_kl import mixture_kl_term
from kd_kernels.backends.triton.divergences.todi import todi_far, todi_near
from kd_kernels.backends.triton.divergences.tvd import tvd_far, tvd_near
from kd_kernels.backends.triton.elementary import LN2, LOG2_E
from kd_kernels.backends.triton.row_sweeps import centred_log_ratio, gap_residue, log_ratio, normalise, probabilities

# From this value on a difference of fp32 sums or probabilities, right to 1e-7 absolute, is as good as any fp32 result.
FAR_ROW = tl.constexpr(1.0 / 64)


@triton.jit
def _term(
    p, q, x, y, state, a, b, NEAR: tl.constexpr, FAMILY: tl.constexpr, FORWARD: tl.constexpr, REVERSE: tl.constexpr,
    UNIT: tl.constexpr,
):  # fmt: skip
    """value and h of an entry; a far KL has no value here, its row has."""
    if FAMILY == "kl" or FAMILY == "akl":
        if NEAR:
            return kl_near(p, q, log_ratio(p, q, x, y, state), a, b, FORWARD, REVERSE)
        else:
            d = centred_log_ratio(x, y, state) if REVERSE else p
            return p, kl_far(p, q, d, a, b, FORWARD, REVERSE)
    elif FAMILY == "tvd":
        if NEAR:
            return tvd_near(p, q, log_ratio(p, q, x, y, state))
        else:
            return tvd_far(p, q)
    elif FAMILY == "todi":
        if NEAR:
            return todi_near(p, q, log_ratio(p, q, x, y, state), a, UNIT)
        else:
            return todi_far(p, q, log_ratio(p, q, x, y, state), a, UNIT)
    else:
        d = log_ratio(p, q, x, y, state) if NEAR else p
        if FAMILY == "jsd":
            return jsd_term(p, q, d, a, NEAR)
        elif FAMILY == "teacher_mixture":
            return mixture_kl_term(p, q, d, a, False, NEAR)
        else:
            return mixture_kl_term(p, q, d, a, True, NEAR)


@triton.jit
def term_sums(
    zs, zt, columns, state, a, b, NEAR: tl.constexpr, FAMILY: tl.constexpr, FORWARD: tl.constexpr,
    REVERSE: tl.constexpr, UNIT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Second sweep: the sums of value and h."""
    value_sum = tl.zeros([BLOCK], tl.float32)
    h_sum = tl.zeros([BLOCK], tl.float32)
    for start in range(0, columns, BLOCK):
        p, q, x, y = probabilities(zs, zt, start + tl.arange(0, BLOCK), columns, state)
        value, h = _term(p, q, x, y, state, a, b, NEAR, FAMILY, FORWARD, REVERSE, UNIT)
        value_sum += value
        h_sum += h
    return tl.sum(value_sum, axis=0), tl.sum(h_sum, axis=0)


@triton.jit
def write_gradient(
    zs, zt, gradient, columns, state, a, b, factor, h_sum, NEAR: tl.constexpr, FAMILY: tl.constexpr,
    FORWARD: tl.constexpr, REVERSE: tl.constexpr, UNIT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Last sweep: gradient = factor (h - q sum h)."""
    for start in range(0, columns, BLOCK):
        offsets = start + tl.arange(0, BLOCK)
        p, q, x, y = probabilities(zs, zt, offsets, columns, state)
        _, h = _term(p, q, x, y, state, a, b, NEAR, FAMILY, FORWARD, REVERSE, UNIT)
        result = factor * tl.fma(-q, h_sum, h)
        tl.store(gradient + offsets, result.to(gradient.dtype.element_ty), mask=offsets < columns)


@triton.jit
def _near_row(
    zs, zt, gradient, columns, state, a, b, factor, GRADIENT: tl.constexpr, FAMILY: tl.constexpr,
    FORWARD: tl.constexpr, REVERSE: tl.constexpr, UNIT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    k2_s, k2_t, off_s, off_t, inv_s, inv_t, shift_s, shift_t, ratio, rate, gap, mean = state
    # e^-residue by which the student's probabilities are off: log1p, whose argument is near 0.
    residue = gap_residue(zs, zt, columns, state, BLOCK)
    correction = residue * (1.0 - residue * (0.5 - residue * 0.333333333))
    gap = tl.where(tl.abs(residue) < 1e-2, gap + correction, gap)
    state = (k2_s, k2_t, off_s, off_t, inv_s, inv_t, shift_s, shift_t, ratio, rate, gap, mean)
    value, h_sum = term_sums(zs, zt, columns, state, a, b, True, FAMILY, FORWARD, REVERSE, UNIT, BLOCK)
    if GRADIENT:
        write_gradient(
            zs, zt, gradient, columns, state, a, b, factor, h_sum, True, FAMILY, FORWARD, REVERSE, UNIT, BLOCK
        )
    return value


@triton.jit
def entropies(zs, zt, columns, state, BLOCK: tl.constexpr):
    """-sum q log q and -sum p log p, in nats."""
    k2_s, k2_t, off_s, off_t, inv_s, inv_t, _, _, _, _, _, _ = state
    sum_s = tl.zeros([BLOCK], tl.float32)
    sum_t = tl.zeros([BLOCK], tl.float32)
    for start in range(0, columns, BLOCK):
        p, q, x, y = probabilities(zs, zt, start + tl.arange(0, BLOCK), columns, state)
        sum_s = tl.fma(q, tl.where(q > 0, tl.fma(x, k2_s, off_s), 0.0), sum_s)
        sum_t = tl.fma(p, tl.where(p > 0, tl.fma(y, k2_t, off_t), 0.0), sum_t)
    return -(tl.log2(inv_s) + tl.sum(sum_s, axis=0)) * LN2, -(tl.log2(inv_t) + tl.sum(sum_t, axis=0)) * LN2


@triton.jit
def clear(row, begin, end, BLOCK: tl.constexpr):
    for start in range(begin, end, BLOCK):
        offsets = start + tl.arange(0, BLOCK)
        tl.store(row + offsets, tl.zeros([BLOCK], row.dtype.element_ty), mask=offsets < end)


@triton.jit
def divergence_row_kernel(
    student, teacher, gradient, value, entropy,  # (N, V), (N, V'), (N, V), (N,), (2, N)
    weight, upstream, normalizer,  # (N,), (N,), ()
    rows, columns, width, student_stride, teacher_stride,
    inverse_temperature_s, inverse_temperature_t, scale, a, b, curvature,
    FAMILY: tl.constexpr, FORWARD: tl.constexpr, REVERSE: tl.constexpr, UNIT: tl.constexpr, KEY_BITS: tl.constexpr,
    GRADIENT: tl.constexpr, ENTROPY: tl.constexpr,
    HAS_WEIGHT: tl.constexpr, HAS_UPSTREAM: tl.constexpr, HAS_NORMALIZER: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """value[row] = weight scale D; gradient[row] = that of value / normalizer times upstream.

    `gradient` may be `student`. Optional tensors come with a flag and are not touched without it. a, b are the family's
    parameters; FORWARD, REVERSE say which KLs it is made of, UNIT that ToDi's beta is 1; curvature is f''(1) of the
    divergence, its ratio to the KL where the sides are close.
    """
    row = tl.program_id(0).to(tl.int64)  # rows times columns passes 2^31
    zs = student + row * student_stride
    zt = teacher + row * teacher_stride
    gradient += row * width
    row_weight = 1.0
    if HAS_WEIGHT:
        row_weight = tl.load(weight + row)
    if row_weight == 0.0:  # the row is not read: it may hold anything
        tl.store(value + row, 0.0)
        if ENTROPY:
            tl.store(entropy + row, 0.0)
            tl.store(entropy + rows + row, 0.0)
        if GRADIENT:
            clear(gradient, 0, width, BLOCK)
    else:
        factor = row_weight * scale * inverse_temperature_s
        if HAS_UPSTREAM:
            factor *= tl.load(upstream + row)
        if HAS_NORMALIZER:
            factor /= tl.load(normalizer)
        state, forward, reverse = normalise(
            zs, zt, columns, inverse_temperature_s * LOG2_E, inverse_temperature_t * LOG2_E, inverse_temperature_s,
            inverse_temperature_t / inverse_temperature_s, FORWARD, REVERSE, BLOCK,
        )  # fmt: skip
        # 0, or NaN where a softmax does not exist. Minima and maxima drop a NaN, and so may a near row: it must show.
        poison = 0.0 * (state[4] + state[5])
        factor += poison
        if ENTROPY:
            entropy_s, entropy_t = entropies(zs, zt, columns, state, BLOCK)
            tl.store(entropy + row, entropy_s)
            tl.store(entropy + rows + row, entropy_t)

        h_sum = 0.0
        if FAMILY == "kl" or FAMILY == "akl":
            if FAMILY == "akl":
                a = head_weight(zs, zt, columns, state, a, KEY_BITS, BLOCK)
                b = 1.0 - a
            # Far rows have their value, and their h is less q sum h. A weight of 0 leaves its side out even where that
            # is infinite.
            result = 0.0
            if REVERSE:
                result = tl.where(b > 0, b * reverse, 0.0)
            if FORWARD:
                result += tl.where(a > 0, a * forward, 0.0)
            near = result < FAR_ROW
        elif FAMILY == "tvd":
            result, h_sum = term_sums(zs, zt, columns, state, a, b, False, FAMILY, FORWARD, REVERSE, UNIT, BLOCK)
            near = result < FAR_ROW
        else:
            near = curvature * forward < FAR_ROW
            result = 0.0
            if not near:
                result, h_sum = term_sums(zs, zt, columns, state, a, b, False, FAMILY, FORWARD, REVERSE, UNIT, BLOCK)
        if near:
            result = _near_row(
                zs, zt, gradient, columns, state, a, b, factor, GRADIENT, FAMILY, FORWARD, REVERSE, UNIT, BLOCK
            )
        elif GRADIENT:
            write_gradient(
                zs, zt, gradient, columns, state, a, b, factor, h_sum, False, FAMILY, FORWARD, REVERSE, UNIT, BLOCK
            )
        tl.store(value + row, row_weight * scale * tl.where(result < 0, 0.0, result) + poison)
        if GRADIENT:
            clear(gradient, columns, width, BLOCK)


@triton.jit
def scale_kernel(gradient, factor, n, BLOCK: tl.constexpr):
    """gradient *= factor; a factor of 1 costs one read of the factor."""
    f = tl.load(factor)
    if f != 1.0:
        offsets = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        x = tl.load(gradient + offsets, mask=offsets < n).to(tl.float32)
        tl.store(gradient + offsets, (x * f).to(gradient.dtype.element_ty), mask=offsets < n)
