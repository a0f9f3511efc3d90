"""One row of one slice of the vocabulary, one program a row; the twin of csrc/cpu/slice_kernel.h.

`statistics` and `state` are `[fields, N]` in the order of kd_kernels/slice_rows.py.
"""

import triton
import triton.language as tl

from kd_kernels.backends.triton.divergences.kl import kl_terms
from kd_kernels.backends.triton.elementary import LOG2_E
from kd_kernels.backends.triton.row_kernel import clear, entropies, term_sums, write_gradient
from kd_kernels.backends.triton.row_sweeps import exponential_sums, log_ratio, measure, probabilities, row_max

# Entries from here down have no mass, and differences of offsets stay finite; BEYOND is lower still.
LOWEST_TOP = tl.constexpr(-1e29)


@triton.jit
def slice_statistics_kernel(
    student, teacher, statistics, weight,  # (N, W), (N, W), (12, N), (N,)
    rows, columns, student_stride, teacher_stride, inverse_temperature_s, inverse_temperature_t, ratio,
    ENTROPY: tl.constexpr, HAS_WEIGHT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """`SliceStatistics` of a row; 0 where its weight is 0."""
    row = tl.program_id(0).to(tl.int64)
    zs = student + row * student_stride
    zt = teacher + row * teacher_stride
    out = statistics + row
    row_weight = 1.0
    if HAS_WEIGHT:
        row_weight = tl.load(weight + row)
    if row_weight == 0.0:  # not read: it may hold anything
        for field in range(12):
            tl.store(out + field * rows, 0.0)
    else:
        k2_s = inverse_temperature_s * LOG2_E
        k2_t = inverse_temperature_t * LOG2_E
        top_s = tl.maximum(row_max(zs, columns, BLOCK), LOWEST_TOP)
        top_t = tl.maximum(row_max(zt, columns, BLOCK), LOWEST_TOP)
        off_s = -top_s * k2_s
        off_t = -top_t * k2_t
        sum_s, sum_t, _, _ = exponential_sums(zs, zt, columns, k2_s, k2_t, off_s, off_t, False, False, True, BLOCK)
        mass_s = tl.where(sum_s > 0, sum_s, 1.0)
        mass_t = tl.where(sum_t > 0, sum_t, 1.0)
        shift_s, shift_t, gap = measure(
            top_s, top_t, k2_s, k2_t, off_s, off_t, tl.log2(mass_s / mass_t), inverse_temperature_s, ratio
        )
        state = (
            k2_s, k2_t, off_s, off_t, 1.0 / mass_s, 1.0 / mass_t, shift_s, shift_t, ratio, inverse_temperature_s,
            gap, 0.0,
        )  # fmt: skip
        forward = tl.zeros([BLOCK], tl.float32)
        reverse = tl.zeros([BLOCK], tl.float32)
        residue = tl.zeros([BLOCK], tl.float32)
        for start in range(0, columns, BLOCK):
            p, q, x, y = probabilities(zs, zt, start + tl.arange(0, BLOCK), columns, state)
            of_forward, of_reverse, difference = kl_terms(p, q, log_ratio(p, q, x, y, state))
            forward += of_forward
            reverse += of_reverse
            residue += difference
        both = (sum_s > 0) & (sum_t > 0)
        # The offset is not exactly -top k2, and slices differ in their tops.
        tl.store(out, top_s)
        tl.store(out + rows, top_t)
        tl.store(out + 2 * rows, sum_s * tl.exp2(-tl.fma(top_s, k2_s, off_s)))
        tl.store(out + 3 * rows, sum_t * tl.exp2(-tl.fma(top_t, k2_t, off_t)))
        tl.store(out + 4 * rows, tl.where(both, shift_s, 0.0))
        tl.store(out + 5 * rows, tl.where(both, shift_t, 0.0))
        tl.store(out + 6 * rows, tl.where(both, gap, 0.0))
        tl.store(out + 7 * rows, tl.where(both, tl.sum(residue, axis=0), 0.0))
        tl.store(out + 8 * rows, tl.where(both, tl.sum(forward, axis=0), 0.0))
        tl.store(out + 9 * rows, tl.where(both, tl.sum(reverse, axis=0), 0.0))
        entropy_s = 0.0
        entropy_t = 0.0
        if ENTROPY:
            entropy_s, entropy_t = entropies(zs, zt, columns, state, BLOCK)
        tl.store(out + 10 * rows, tl.where(sum_s > 0, entropy_s, 0.0))
        tl.store(out + 11 * rows, tl.where(sum_t > 0, entropy_t, 0.0))


@triton.jit
def _resume(state, rows, inverse_temperature_s, inverse_temperature_t, ratio):
    """The row's state for the sweeps; NaN in what a program reads of a row whose softmax does not exist."""
    k2_s = inverse_temperature_s * LOG2_E
    k2_t = inverse_temperature_t * LOG2_E
    top_s = tl.load(state)
    top_t = tl.load(state + rows)
    off_s = -top_s * k2_s
    off_t = -top_t * k2_t
    inv_s = tl.load(state + 2 * rows) * tl.exp2(-tl.fma(top_s, k2_s, off_s))
    inv_t = tl.load(state + 3 * rows) * tl.exp2(-tl.fma(top_t, k2_t, off_t))
    shift_s = tl.load(state + 4 * rows)
    shift_t = tl.load(state + 5 * rows)
    gap = tl.load(state + 6 * rows)
    return k2_s, k2_t, off_s, off_t, inv_s, inv_t, shift_s, shift_t, ratio, inverse_temperature_s, gap, 0.0


@triton.jit
def slice_sums_kernel(
    student, teacher, state, sums, weight,  # (N, W), (N, W), (11, N), (2, N), (N,)
    rows, columns, student_stride, teacher_stride, inverse_temperature_s, inverse_temperature_t, ratio, a, b,
    FAMILY: tl.constexpr, FORWARD: tl.constexpr, REVERSE: tl.constexpr, UNIT: tl.constexpr,
    HAS_WEIGHT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Sums of value and of h over a row of the slice."""
    row = tl.program_id(0).to(tl.int64)
    zs = student + row * student_stride
    zt = teacher + row * teacher_stride
    row_weight = 1.0
    if HAS_WEIGHT:
        row_weight = tl.load(weight + row)
    value = 0.0
    h_sum = 0.0
    if row_weight != 0.0:
        normal = _resume(state + row, rows, inverse_temperature_s, inverse_temperature_t, ratio)
        far = tl.load(state + 9 * rows + row)
        if FAMILY == "tvd":
            value, h_sum = term_sums(zs, zt, columns, normal, a, b, True, FAMILY, FORWARD, REVERSE, UNIT, BLOCK)
        elif far != 0.0:
            value, h_sum = term_sums(zs, zt, columns, normal, a, b, False, FAMILY, FORWARD, REVERSE, UNIT, BLOCK)
        else:
            value, h_sum = term_sums(zs, zt, columns, normal, a, b, True, FAMILY, FORWARD, REVERSE, UNIT, BLOCK)
    tl.store(sums + row, value)
    tl.store(sums + rows + row, h_sum)


@triton.jit
def slice_gradient_kernel(
    student, teacher, gradient, state, factor, weight,  # (N, W), (N, W), (N, W), (11, N), (N,), (N,)
    rows, columns, student_stride, teacher_stride, gradient_stride,
    inverse_temperature_s, inverse_temperature_t, ratio, a, b,
    FAMILY: tl.constexpr, FORWARD: tl.constexpr, REVERSE: tl.constexpr, UNIT: tl.constexpr,
    HAS_WEIGHT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """gradient = factor (h - q sum h) in a row of the slice; `gradient` may be `student`."""
    row = tl.program_id(0).to(tl.int64)
    zs = student + row * student_stride
    zt = teacher + row * teacher_stride
    gradient += row * gradient_stride
    row_weight = 1.0
    if HAS_WEIGHT:
        row_weight = tl.load(weight + row)
    if row_weight == 0.0:
        clear(gradient, 0, columns, BLOCK)
    else:
        normal = _resume(state + row, rows, inverse_temperature_s, inverse_temperature_t, ratio)
        far = tl.load(state + 9 * rows + row)
        h_sum = tl.load(state + 10 * rows + row)
        # Minima and maxima drop a NaN: where a softmax does not exist it must show all the same.
        scale = tl.load(factor + row) + 0.0 * (normal[4] + normal[5])
        if FAMILY == "kl" or FAMILY == "tvd":
            if FAMILY == "kl":
                a = tl.load(state + 7 * rows + row)
                b = tl.load(state + 8 * rows + row)
            write_gradient(
                zs, zt, gradient, columns, normal, a, b, scale, h_sum, True, FAMILY, FORWARD, REVERSE, UNIT, BLOCK
            )
        elif far != 0.0:
            write_gradient(
                zs, zt, gradient, columns, normal, a, b, scale, h_sum, False, FAMILY, FORWARD, REVERSE, UNIT, BLOCK
            )
        else:
            write_gradient(
                zs, zt, gradient, columns, normal, a, b, scale, h_sum, True, FAMILY, FORWARD, REVERSE, UNIT, BLOCK
            )
