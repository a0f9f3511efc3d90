"""Sums over the vocabulary of |q_iv - p_jv| for all pairs of rows, and their derivative.

The axis that is summed over comes first in every tile: its entries then belong to one thread, which adds them up
without asking others. Probabilities are made from logits where they are used, everywhere from the same statistics.
"""

import triton
import triton.language as tl

from kd_kernels.backends.triton.row_sweeps import row_max


@triton.jit
def _counted(mask, row, count, HAS_MASK: tl.constexpr):
    """Which of some rows are there, and count."""
    inside = row < count
    if HAS_MASK:
        return tl.load(mask + row, mask=inside, other=0) != 0
    else:
        return inside


@triton.jit
def _statistics(statistics, row, counted):
    """The largest logit and the inverse of the sum of exponentials; rows that do not count get probabilities of 0."""
    return tl.load(statistics + row * 2, mask=counted, other=0.0), tl.load(
        statistics + row * 2 + 1, mask=counted, other=0.0
    )


@triton.jit
def _probabilities(at, inside, top, inverse, rate, SOFTMAX: tl.constexpr):
    """Of the logits at a tile of places; 0 outside. Without softmax, the inputs themselves."""
    if SOFTMAX:
        return tl.exp2((tl.load(at, mask=inside, other=float("-inf")).to(tl.float32) - top) * rate) * inverse
    else:
        return tl.load(at, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def l1_statistics_kernel(
    logits, mask, statistics,  # (B, rows, V), (B, rows), (B, all, 2)
    rows, all_rows, columns, batch_stride, row_stride, rate,
    HAS_MASK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """top and 1 / sum exp of one row a program; of rows that do not count, 0."""
    problem = tl.program_id(0).to(tl.int64) // rows
    row = tl.program_id(0).to(tl.int64) % rows
    z = logits + problem * batch_stride + row * row_stride
    top = 0.0
    inverse = 0.0
    counted = True
    if HAS_MASK:
        counted = tl.load(mask + problem * rows + row) != 0
    if counted:
        top = row_max(z, columns, BLOCK)
        total = tl.zeros([BLOCK], tl.float32)
        for start in range(0, columns, BLOCK):
            v = start + tl.arange(0, BLOCK)
            x = tl.load(z + v, mask=v < columns, other=float("-inf")).to(tl.float32)
            total += tl.exp2((x - top) * rate)
        inverse = 1.0 / tl.sum(total, axis=0)
    at = statistics + (problem * all_rows + row) * 2
    tl.store(at, top)
    tl.store(at + 1, inverse)


@triton.jit
def l1_cost_kernel(
    student, teacher, student_mask, teacher_mask, statistics,  # (B, n, V), (B, m, V'), (B, n), (B, m), (B, n + m, 2)
    partials,  # (splits, B, n, m)
    batch, n, m, columns, width,
    student_batch_stride, student_row_stride, teacher_batch_stride, teacher_row_stride, student_rate, teacher_rate,
    SOFTMAX: tl.constexpr, HAS_STUDENT_MASK: tl.constexpr, HAS_TEACHER_MASK: tl.constexpr,
    TILE: tl.constexpr, STEP: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """A tile of the costs, summed over a slice of `width` columns; 0 for rows that do not count.

    Sums of CHUNK columns are added up on their own, so that no chain of additions is long.
    """
    row_tiles, column_tiles = tl.cdiv(n, TILE), tl.cdiv(m, TILE)
    index = tl.program_id(0).to(tl.int64)
    j = (index % column_tiles).to(tl.int32)
    i = (index // column_tiles % row_tiles).to(tl.int32)
    index = index // column_tiles // row_tiles
    problem = index % batch
    begin = (index // batch * width).to(tl.int32)
    end = tl.minimum(begin + width, columns)

    lane = tl.arange(0, TILE)
    row, column = lane + i * TILE, lane + j * TILE
    row_counts = _counted(student_mask + problem * n, row, n, HAS_STUDENT_MASK)
    column_counts = _counted(teacher_mask + problem * m, column, m, HAS_TEACHER_MASK)
    statistics += problem * (n + m) * 2
    row_top, row_inverse = _statistics(statistics, row, row_counts)
    column_top, column_inverse = _statistics(statistics + n * 2, column, column_counts)
    rows_at = student + problem * student_batch_stride + row.to(tl.int64)[None, :] * student_row_stride
    columns_at = teacher + problem * teacher_batch_stride + column.to(tl.int64)[None, :] * teacher_row_stride
    some = (tl.max(row_counts.to(tl.int32), axis=0) > 0) & (tl.max(column_counts.to(tl.int32), axis=0) > 0)
    total = tl.zeros([TILE, TILE], tl.float32)
    for chunk in range(begin, tl.where(some, end, begin), CHUNK):
        part = tl.zeros([TILE, TILE], tl.float32)
        for start in range(chunk, tl.minimum(chunk + CHUNK, end), STEP):
            v = tl.arange(0, STEP) + start
            inside = (v < end)[:, None]
            q = _probabilities(
                rows_at + v[:, None], inside & row_counts[None, :], row_top[None, :], row_inverse[None, :],
                student_rate, SOFTMAX,
            )  # fmt: skip
            p = _probabilities(
                columns_at + v[:, None], inside & column_counts[None, :], column_top[None, :], column_inverse[None, :],
                teacher_rate, SOFTMAX,
            )  # fmt: skip
            part += tl.sum(tl.abs(q[:, :, None] - p[:, None, :]), axis=0)
        total += part
    total = tl.where(row_counts[:, None] & column_counts[None, :], total, 0.0)
    at = partials + index * n * m + row.to(tl.int64)[:, None] * m + column[None, :]
    tl.store(at, total, mask=(row < n)[:, None] & (column < m)[None, :])


@triton.jit
def l1_gain_kernel(
    upstream, student, teacher, student_mask, teacher_mask, statistics,  # (B, n, m), then as above
    gains, sums,  # (rows of the tiles, columns), (rows of the tiles, blocks of columns)
    first, n, m, columns, width, upstream_batch_stride, upstream_row_stride, upstream_column_stride,
    student_batch_stride, student_row_stride, teacher_batch_stride, teacher_row_stride, student_rate, teacher_rate,
    SOFTMAX: tl.constexpr, HAS_STUDENT_MASK: tl.constexpr, HAS_TEACHER_MASK: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """The derivative by q in a tile of rows, counted from `first` on over all problems, and columns.

    G_iv = sum_j W_ij sign(q_iv - p_jv), and with softmax the part of sum_v q_iv G_iv. There the sign of 0 is -1: a row
    that is the teacher's has the same everywhere, which the derivative does not see. Without softmax it is 0, and
    `gains` is the gradient itself, (B n, width), 0 from `columns` on.
    """
    row_tiles = tl.cdiv(n, ROWS)
    blocks = tl.cdiv(width, COLUMNS)
    tile = tl.program_id(0).to(tl.int64) // blocks
    block = (tl.program_id(0).to(tl.int64) % blocks).to(tl.int32)
    problem = (tile + first) // row_tiles
    i = ((tile + first) % row_tiles).to(tl.int32)
    row = tl.arange(0, ROWS) + i * ROWS
    v = tl.arange(0, COLUMNS) + block * COLUMNS
    row_counts = _counted(student_mask + problem * n, row, n, HAS_STUDENT_MASK)
    statistics += problem * (n + m) * 2
    row_top, row_inverse = _statistics(statistics, row, row_counts)
    at = student + problem * student_batch_stride + row.to(tl.int64)[:, None] * student_row_stride + v[None, :]
    q = _probabilities(
        at, row_counts[:, None] & (v < columns)[None, :], row_top[:, None], row_inverse[:, None], student_rate, SOFTMAX
    )
    upstream += problem * upstream_batch_stride + row.to(tl.int64)[None, :] * upstream_row_stride
    teacher += problem * teacher_batch_stride
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    for start in range(0, m, STEP):
        j = tl.arange(0, STEP) + start
        j_counts = _counted(teacher_mask + problem * m, j, m, HAS_TEACHER_MASK)
        top, inverse = _statistics(statistics + n * 2, j, j_counts)
        p = _probabilities(
            teacher + j.to(tl.int64)[:, None] * teacher_row_stride + v[None, :],
            j_counts[:, None] & (v < columns)[None, :], top[:, None], inverse[:, None], teacher_rate, SOFTMAX,
        )  # fmt: skip
        weights_at = upstream + j.to(tl.int64)[:, None] * upstream_column_stride
        w = tl.load(weights_at, mask=j_counts[:, None] & row_counts[None, :], other=0.0).to(tl.float32)
        below = -w[:, :, None]
        if not SOFTMAX:
            below = tl.where(q[None, :, :] < p[:, None, :], below, 0.0)
        total += tl.sum(tl.where(q[None, :, :] > p[:, None, :], w[:, :, None], below), axis=0)
    if SOFTMAX:
        line = tl.arange(0, ROWS) + tile * ROWS
        tl.store(sums + line * blocks + block, tl.sum(q * total, axis=1))
        tl.store(gains + line[:, None] * width + v[None, :], total, mask=(v < width)[None, :])
    else:
        total = tl.where((v < columns)[None, :], total, 0.0).to(gains.dtype.element_ty)
        at = gains + (problem * n + row)[:, None] * width + v[None, :]
        tl.store(at, total, mask=(row < n)[:, None] & (v < width)[None, :])


@triton.jit
def l1_gradient_kernel(
    student, student_mask, statistics, gains, means,  # (B, n, V), (B, n), (B, n + m, 2), as above, (rows of the tiles,)
    gradient,  # (B, n, V)
    first, n, m, columns, width, student_batch_stride, student_row_stride, inverse_temperature, student_rate,
    HAS_STUDENT_MASK: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """q (G - sum q G) / T of a block of a row; 0 from `columns` on, and in rows that do not count."""
    blocks = tl.cdiv(width, BLOCK)
    line = tl.program_id(0).to(tl.int64) // blocks
    block = (tl.program_id(0).to(tl.int64) % blocks).to(tl.int32)
    row_tiles = tl.cdiv(n, ROWS)
    tile = line // ROWS + first
    problem = tile // row_tiles
    row = tile % row_tiles * ROWS + line % ROWS
    if row < n:
        v = tl.arange(0, BLOCK) + block * BLOCK
        result = tl.zeros([BLOCK], tl.float32)
        counted = True
        if HAS_STUDENT_MASK:
            counted = tl.load(student_mask + problem * n + row) != 0
        if counted:
            at = statistics + (problem * (n + m) + row) * 2
            inside = v < columns
            q = _probabilities(
                student + problem * student_batch_stride + row * student_row_stride + v, inside, tl.load(at),
                tl.load(at + 1), student_rate, True,
            )  # fmt: skip
            gain = tl.load(gains + line * columns + v, mask=inside, other=0.0)
            result = tl.where(inside, q * (gain - tl.load(means + line)) * inverse_temperature, 0.0)
        tl.store(gradient + (problem * n + row) * width + v, result.to(gradient.dtype.element_ty), mask=v < width)
