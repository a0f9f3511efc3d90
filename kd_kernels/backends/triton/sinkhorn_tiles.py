"""What the Sinkhorn kernels share: K_ij = exp((F_i + H_j - C_ij) / eps) in tiles, masses and scalings beside it.

A line is a row or a column. Vectors over lines, (n + m), hold the rows first. Lines without mass have zeros in K, and
their costs are not read.

A tile has the same shape and layout whatever the size of its problem, and no size, stride or alignment is compiled in:
sums are the same, bit for bit, with padding and without. Vectors are kept in memory; what one thread of a program
writes there others read, and `publish` comes between. Loops keep what does not change inside them: hoisted, all the
addresses would spill.
"""

import triton
import triton.language as tl

from kd_kernels.backends.triton.elementary import LN2, LOG2_E, TINY, log_bend

# Arguments of kernels for which Triton is not to compile anew, with other layouts.
SIZES = (
    "n", "m", "slots", "iterations", "batch_stride", "row_stride", "column_stride", "plan_batch_stride",
    "plan_row_stride", "plan_column_stride",
)  # fmt: skip
FOREIGN = ("cost", "plan_upstream")  # memory that may begin anywhere

TILE = tl.constexpr(64)
STRIP = tl.constexpr(16)  # rows of a tile at a time where there is float64, for want of registers
SMALLEST = tl.constexpr(2.0**-120)  # a smaller sum is that of a line whose costs are finite nowhere
NEAREST = tl.constexpr(2.0**-28)  # scalings outside [NEAREST, FARTHEST] are absorbed
FARTHEST = tl.constexpr(2.0**28)


@triton.jit
def publish():
    tl.debug_barrier()


@triton.jit
def sizes(lengths, problem, n, m, HAS_LENGTHS: tl.constexpr):
    """Rows and columns of a problem."""
    if HAS_LENGTHS:
        return tl.load(lengths + problem * 2).to(tl.int32), tl.load(lengths + problem * 2 + 1).to(tl.int32)
    else:
        return n, m


@triton.jit
def lines(i, count, SIZE: tl.constexpr = TILE):
    """Indices of the lines of tile, or strip, i and which there are."""
    line = tl.arange(0, SIZE) + i * SIZE
    return line, line < count


@triton.jit
def reciprocal(total, mass):
    """What scales the sum of a line to its mass, less the mass; NaN stays."""
    some = (mass > 0) & ~(total < SMALLEST)
    return tl.where(some, 1.0 / tl.where(some, total, 1.0), 0.0)


@triton.jit
def relative(scaling, absorbed):
    """A scaling in a frame that has absorbed it, or not."""
    return tl.where(absorbed, tl.where(scaling == 0, 0.0, 1.0), scaling)


@triton.jit
def is_far(scaling, mass):
    """Whether any scaling of a tile must be absorbed."""
    outside = (mass > 0) & (scaling > 0) & ((scaling < NEAREST) | (scaling > FARTHEST))
    return tl.max(outside.to(tl.int32), axis=0) > 0


@triton.jit
def moved(offset, scaling, eps):
    """The offset after absorbing a scaling; with -eps, before.

    Of the logarithm its float32 part is that of the mantissa, off by less than the scaling itself is.
    """
    bits = tl.where(scaling < TINY, TINY, scaling).to(tl.int32, bitcast=True)
    power = (bits - 0x3F3504F3) >> 23  # scaling = 2^power mantissa, sqrt(1/2) <= mantissa < sqrt(2)
    f = (bits - (power << 23)).to(tl.float32, bitcast=True) - 1.0
    f += scaling - scaling  # NaN shows
    logarithm = power.to(tl.float64) * LN2 + (f - log_bend(f)).to(tl.float64)
    return tl.where(scaling == 0, offset, offset + eps * logarithm)


@triton.jit
def costs(cost, row, row_mass, column, column_mass, row_stride, column_stride):
    """Costs in float32, +inf where a line has no mass."""
    pair = (row_mass > 0)[:, None] & (column_mass > 0)[None, :]
    at = cost + row.to(tl.int64)[:, None] * row_stride + column.to(tl.int64)[None, :] * column_stride
    return tl.load(at, mask=pair, other=float("inf")).to(tl.float32)


@triton.jit
def exponentials(some, f, h, eps):
    """K where the costs are `some`; the exponent is a small difference of large numbers, hence float64."""
    exponent = (f[:, None] + h[None, :] - some.to(tl.float64)) * (1.0 / eps * LOG2_E)
    return tl.exp2(exponent.to(tl.float32))


@triton.jit
def entries(kernel, i, j, column_tiles, SIZE: tl.constexpr = TILE):
    """Where K of tile, or strip, i of the rows and tile j of the columns is. A tile lies in one piece."""
    strips: tl.constexpr = TILE // SIZE
    tile = i // strips
    first = (column_tiles * tile + j) * (TILE * TILE) + (i - tile * strips) * (SIZE * TILE)
    return kernel + first + (tl.arange(0, SIZE)[:, None] * TILE + tl.arange(0, TILE)[None, :])


@triton.jit
def build(cost, masses, frame, kernel, eps, n, rows, columns, column_tiles, row_stride, column_stride):
    """Writes K in the frame of the offsets."""
    for i in tl.range(tl.cdiv(rows, TILE) * (TILE // STRIP), disable_licm=True):
        row, row_in = lines(i, rows, STRIP)
        row_mass = tl.load(masses + row, mask=row_in, other=0.0)
        f = tl.load(frame + row, mask=row_mass > 0, other=0.0)
        for j in tl.range(tl.cdiv(columns, TILE), disable_licm=True):
            column, column_in = lines(j, columns)
            column_mass = tl.load(masses + n + column, mask=column_in, other=0.0)
            h = tl.load(frame + n + column, mask=column_mass > 0, other=0.0)
            some = costs(cost, row, row_mass, column, column_mass, row_stride, column_stride)
            tl.store(entries(kernel, i, j, column_tiles, STRIP), exponentials(some, f, h, eps))
    publish()


@triton.jit
def absorb(frame, scalings, count, eps):
    """Moves the offsets of some lines by their scalings."""
    for i in tl.range(tl.cdiv(count, TILE), disable_licm=True):
        line, there = lines(i, count)
        scaling = tl.load(scalings + line, mask=there, other=0.0)
        offset = tl.load(frame + line, mask=there, other=0.0)
        tl.store(frame + line, moved(offset, scaling, eps), mask=there)
