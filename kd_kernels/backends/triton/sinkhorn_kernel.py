"""Sinkhorn iterations in scalings of an absorbed kernel, one program a problem.

The plan is x_i K_ij y_j with K_ij = exp((F_i + H_j - C_ij) / eps). The offsets F, H are a frame: where x or y would
leave the range of float32 the frame absorbs them and K is built anew (Schmitzer 2019, "Stabilized Sparse Scaling
Algorithms for Entropy Regularized Transport Problems"); x = a and y = b in a frame that has absorbed both. Results are
those of the logarithmic form. x = a rho and y = b sigma: rho and sigma are what an iteration leaves behind.
"""

import triton
import triton.language as tl

from kd_kernels.backends.triton.sinkhorn_tiles import (
    FOREIGN,
    SIZES,
    STRIP,
    TILE,
    absorb,
    build,
    costs,
    entries,
    exponentials,
    is_far,
    lines,
    moved,
    publish,
    reciprocal,
    relative,
    sizes,
)

UNREACHED = tl.constexpr(2.0**-60)  # less than this is no sum of a column to go on from


@triton.jit
def _reach_rows(cost, masses, frame, n, rows, columns, row_stride, column_stride):
    """F_i = min_j (C_ij - H_j): every row has an entry of 1."""
    for i in tl.range(tl.cdiv(rows, STRIP), disable_licm=True):
        row, row_in = lines(i, rows, STRIP)
        row_mass = tl.load(masses + row, mask=row_in, other=0.0)
        nearest = tl.full([STRIP, TILE], float("inf"), tl.float64)
        for j in tl.range(tl.cdiv(columns, TILE), disable_licm=True):
            column, column_in = lines(j, columns)
            column_mass = tl.load(masses + n + column, mask=column_in, other=0.0)
            h = tl.load(frame + n + column, mask=column_in, other=0.0)
            some = costs(cost, row, row_mass, column, column_mass, row_stride, column_stride)
            nearest = tl.minimum(nearest, some.to(tl.float64) - h[None, :])
        f = tl.min(nearest, axis=1)
        tl.store(frame + row, tl.where(f == float("inf"), 0.0, f), mask=row_in)


@triton.jit
def _reach_columns(cost, masses, scalings, frame, n, rows, columns, row_stride, column_stride):
    """H_j = min_i (C_ij - F_i) over the rows that send: every column has an entry of 1."""
    for j in tl.range(tl.cdiv(columns, TILE), disable_licm=True):
        column, column_in = lines(j, columns)
        column_mass = tl.load(masses + n + column, mask=column_in, other=0.0)
        nearest = tl.full([STRIP, TILE], float("inf"), tl.float64)
        for i in tl.range(tl.cdiv(rows, STRIP), disable_licm=True):
            row, row_in = lines(i, rows, STRIP)
            sends = relative(tl.load(scalings + row, mask=row_in, other=0.0), True)
            f = tl.load(frame + row, mask=row_in, other=0.0)
            some = costs(cost, row, sends, column, column_mass, row_stride, column_stride)
            nearest = tl.minimum(nearest, some.to(tl.float64) - f[:, None])
        h = tl.min(nearest, axis=0)
        tl.store(frame + n + column, tl.where(h == float("inf"), 0.0, h), mask=column_in)


@triton.jit
def _half_iteration(cost, masses, scalings, frame, eps, n, rows, columns, row_stride, column_stride):
    """rho from y = 1, and the sums of columns in the place of sigma; -> whether one with mass is out of reach."""
    for i in tl.range(tl.cdiv(rows, STRIP), disable_licm=True):
        row, row_in = lines(i, rows, STRIP)
        row_mass = tl.load(masses + row, mask=row_in, other=0.0)
        f = tl.load(frame + row, mask=row_in, other=0.0)
        sent = tl.zeros([STRIP, TILE], tl.float32)
        for j in tl.range(tl.cdiv(columns, TILE), disable_licm=True):
            column, column_in = lines(j, columns)
            column_mass = tl.load(masses + n + column, mask=column_in, other=0.0)
            h = tl.load(frame + n + column, mask=column_in, other=0.0)
            some = costs(cost, row, row_mass, column, column_mass, row_stride, column_stride)
            sent += exponentials(some, f, h, eps)
        rho = reciprocal(tl.sum(sent, axis=1), row_mass)
        tl.store(scalings + row, rho, mask=row_in)
        for j in tl.range(tl.cdiv(columns, TILE), disable_licm=True):
            column, column_in = lines(j, columns)
            column_mass = tl.load(masses + n + column, mask=column_in, other=0.0)
            h = tl.load(frame + n + column, mask=column_in, other=0.0)
            some = costs(cost, row, row_mass, column, column_mass, row_stride, column_stride)
            total = tl.load(scalings + n + column, mask=column < tl.where(i > 0, columns, 0), other=0.0)
            total += tl.sum(exponentials(some, f, h, eps) * (row_mass * rho)[:, None], axis=0)
            tl.store(scalings + n + column, total, mask=column_in)
        publish()
    unreached = False
    for j in tl.range(tl.cdiv(columns, TILE), disable_licm=True):
        column, column_in = lines(j, columns)
        column_mass = tl.load(masses + n + column, mask=column_in, other=0.0)
        few = tl.load(scalings + n + column, mask=column < tl.where(rows > 0, columns, 0), other=0.0) < UNREACHED
        unreached = unreached | (tl.max((few & (column_mass > 0)).to(tl.int32), axis=0) > 0)
    return unreached


@triton.jit(do_not_specialize=SIZES, do_not_specialize_on_alignment=FOREIGN)
def sinkhorn_start_kernel(
    cost, masses, eps, lengths, start,  # (B, n, m), (B, n + m), (B,), (B, 2), (B, m)
    scalings, frames, current, second,  # (B, slots, n + m), (B, 3, n + m), (B, n + m), (B,)
    n, m, slots, batch_stride, row_stride, column_stride,
    HAS_LENGTHS: tl.constexpr, HAS_START: tl.constexpr,
):  # fmt: skip
    """The frames of the first iteration: of its rows, of its columns, and of the columns once more, to go on from.

    Both are the same unless `second` says so: where the columns' sums would leave one out of reach, they have a frame
    of their own, which has absorbed the rows' scalings.
    """
    problem = tl.program_id(0).to(tl.int64)
    rows, columns = sizes(lengths, problem, n, m, HAS_LENGTHS)
    cost += problem * batch_stride
    masses += problem * (n + m)
    current += problem * (n + m)
    scalings += problem * slots * (n + m)
    frames += problem * 3 * (n + m)
    frame = frames + 2 * (n + m)
    eps = tl.load(eps + problem)
    for j in tl.range(tl.cdiv(columns, TILE), disable_licm=True):
        column, column_in = lines(j, columns)
        column_mass = tl.load(masses + n + column, mask=column_in, other=0.0)
        h = tl.zeros([TILE], tl.float64)
        if HAS_START:
            given = tl.load(start + problem * m + column, mask=column_mass > 0, other=0.0)
            h = tl.where(tl.abs(given) < float("inf"), given, 0.0).to(tl.float64)
        tl.store(frame + n + column, h, mask=column_in)
        tl.store(current + n + column, tl.where(column_mass > 0, 1.0, 0.0), mask=column_in)
    publish()
    _reach_rows(cost, masses, frame, n, rows, columns, row_stride, column_stride)
    publish()
    _copy(frame, frames, n + m)
    unreached = _half_iteration(cost, masses, scalings, frame, eps, n, rows, columns, row_stride, column_stride)
    if unreached:
        absorb(frame, scalings, rows, eps)
        publish()
        _reach_columns(cost, masses, scalings, frame, n, rows, columns, row_stride, column_stride)
        publish()
    _copy(frame, frames + (n + m), n + m)
    tl.store(second + problem, tl.where(unreached, 1, 0))


@triton.jit
def _copy(source, target, count):
    for i in tl.range(tl.cdiv(count, TILE), disable_licm=True):
        line, there = lines(i, count)
        tl.store(target + line, tl.load(source + line, mask=there, other=0.0), mask=there)


@triton.jit(do_not_specialize=SIZES, do_not_specialize_on_alignment=FOREIGN)
def sinkhorn_kernel(
    cost, masses, eps, lengths,  # (B, n, m), (B, n + m), (B,), (B, 2)
    scalings, frames, kernel, current,  # (B, slots, n + m), (B, 3, n + m), (B, tiles, TILE, TILE), (B, n + m)
    run,  # (B,): comes as `second`
    n, m, slots, iterations, tolerance, batch_stride, row_stride, column_stride,
    HAS_LENGTHS: tl.constexpr, HAS_TOLERANCE: tl.constexpr,
):  # fmt: skip
    """All iterations: rho and sigma of the last `slots` of them, x and y to `current`, the last frame."""
    problem = tl.program_id(0).to(tl.int64)
    rows, columns = sizes(lengths, problem, n, m, HAS_LENGTHS)
    row_tiles = tl.cdiv(rows, TILE)
    summed = tl.where(rows > 0, columns, 0)  # columns whose sums are in memory
    column_tiles = tl.cdiv(m, TILE).to(tl.int64)
    cost += problem * batch_stride
    masses += problem * (n + m)
    current += problem * (n + m)
    frame = frames + (problem * 3 + 2) * (n + m)
    kernel += problem * tl.cdiv(n, TILE) * column_tiles * (TILE * TILE)
    eps = tl.load(eps + problem)
    step = tl.zeros([], tl.int32)
    going = True
    stale = True  # whether K is of another frame
    second = tl.load(run + problem) > 0
    while going:
        if stale:
            build(cost, masses, frame, kernel, eps, n, rows, columns, column_tiles, row_stride, column_stride)
        now = scalings + (problem * slots + step % slots) * (n + m)
        given = (step == 0) & second  # rho is, and absorbed
        far = False
        mass = 0.0
        misplaced = 0.0
        for i in tl.range(row_tiles, disable_licm=True):
            row, row_in = lines(i, rows)
            row_mass = tl.load(masses + row, mask=row_in, other=0.0)
            sent = tl.zeros([TILE, TILE], tl.float32)
            for j in tl.range(tl.cdiv(columns, TILE), disable_licm=True):
                column, column_in = lines(j, columns)
                y = tl.load(current + n + column, mask=column_in, other=0.0)
                k = tl.load(entries(kernel, i, j, column_tiles))
                sent = tl.fma(k, tl.broadcast_to(y[None, :], [TILE, TILE]), sent)
            total = tl.sum(sent, axis=1)
            if HAS_TOLERANCE:
                x = tl.load(current + row, mask=row < tl.where(step > 0, rows, 0), other=0.0)
                misplaced += tl.sum(tl.abs(x * total - row_mass), axis=0)
                mass += tl.sum(row_mass, axis=0)
            rho = tl.load(now + row, mask=row < tl.where(given, rows, 0), other=0.0)
            rho = tl.where(given, rho, reciprocal(total, row_mass))
            tl.store(now + row, rho, mask=row_in)
            far = far | is_far(rho, row_mass)
            x = row_mass * relative(rho, given)
            for j in tl.range(tl.cdiv(columns, TILE), disable_licm=True):
                column, column_in = lines(j, columns)
                total = tl.load(now + n + column, mask=column < tl.where(i > 0, columns, 0), other=0.0)
                total += tl.sum(tl.load(entries(kernel, i, j, column_tiles)) * x[:, None], axis=0)
                tl.store(now + n + column, total, mask=column_in)
            publish()
        met = False
        if HAS_TOLERANCE:
            met = (step > 0) & (misplaced / tl.where(mass > 0, mass, 1.0) <= tolerance)
        if met:
            going = False
        else:
            for j in tl.range(tl.cdiv(columns, TILE), disable_licm=True):
                column, column_in = lines(j, columns)
                column_mass = tl.load(masses + n + column, mask=column_in, other=0.0)
                sigma = reciprocal(tl.load(now + n + column, mask=column < summed, other=0.0), column_mass)
                publish()  # every thread has the sums before one writes over them
                tl.store(now + n + column, sigma, mask=column_in)
                tl.store(current + n + column, column_mass * sigma, mask=column_in)
                far = far | is_far(sigma, column_mass)
            _scale(current, masses, now, rows, given)
            publish()
            step += 1
            going = step < iterations
            stale = far & going
            if stale:
                absorb(frame, now, tl.where(given, 0, rows), eps)
                absorb(frame + n, now + n, columns, eps)
                _scale(current, masses, now, rows, True)
                _scale(current + n, masses + n, now + n, columns, True)
                publish()
    tl.store(run + problem, step.to(tl.int64))


@triton.jit
def _scale(current, masses, scalings, count, absorbed):
    """x or y, from rho or sigma, in the frame."""
    for i in tl.range(tl.cdiv(count, TILE), disable_licm=True):
        line, there = lines(i, count)
        mass = tl.load(masses + line, mask=there, other=0.0)
        scaling = tl.load(scalings + line, mask=there, other=0.0)
        tl.store(current + line, mass * relative(scaling, absorbed), mask=there)


@triton.jit
def _potentials(potentials, frame, current, count, eps):
    for i in tl.range(tl.cdiv(count, TILE), disable_licm=True):
        line, there = lines(i, count)
        scaling = tl.load(current + line, mask=there, other=0.0)
        potential = moved(tl.load(frame + line, mask=there, other=0.0), scaling, eps).to(tl.float32)
        tl.store(potentials + line, tl.where(scaling == 0, float("-inf"), potential), mask=there)


@triton.jit(do_not_specialize=SIZES, do_not_specialize_on_alignment=FOREIGN)
def sinkhorn_value_kernel(
    cost, masses, eps, lengths, frames, current,
    value, f, g, plan, error,  # (B,), (B, n), (B, m), (B, n, m), (B,)
    n, m, batch_stride, row_stride, column_stride,
    HAS_LENGTHS: tl.constexpr, ENTROPIC: tl.constexpr, PLAN: tl.constexpr,
):  # fmt: skip
    """What x and y in the last frame amount to. Lines beyond the lengths keep what f, g and plan hold."""
    problem = tl.program_id(0).to(tl.int64)
    rows, columns = sizes(lengths, problem, n, m, HAS_LENGTHS)
    cost += problem * batch_stride
    masses += problem * (n + m)
    current += problem * (n + m)
    frame = frames + (problem * 3 + 2) * (n + m)
    eps = tl.load(eps + problem)
    _potentials(f + problem * n, frame, current, rows, eps)
    _potentials(g + problem * m, frame + n, current + n, columns, eps)
    total = 0.0
    mass = 0.0
    misplaced = 0.0
    for i in tl.range(tl.cdiv(rows, STRIP), disable_licm=True):
        row, row_in = lines(i, rows, STRIP)
        row_mass = tl.load(masses + row, mask=row_in, other=0.0)
        x = tl.load(current + row, mask=row_in, other=0.0)
        offset = tl.load(frame + row, mask=row_in, other=0.0)
        sent = tl.zeros([STRIP, TILE], tl.float32)
        terms = tl.zeros([STRIP, TILE], tl.float32)
        for j in tl.range(tl.cdiv(columns, TILE), disable_licm=True):
            column, column_in = lines(j, columns)
            column_mass = tl.load(masses + n + column, mask=column_in, other=0.0)
            y = tl.load(current + n + column, mask=column_in, other=0.0)
            h = tl.load(frame + n + column, mask=column_in, other=0.0)
            some = costs(cost, row, row_mass, column, column_mass, row_stride, column_stride)
            k = exponentials(some, offset, h, eps)
            sent = tl.fma(k, tl.broadcast_to(y[None, :], [STRIP, TILE]), sent)
            p = k * x[:, None] * y[None, :]
            if ENTROPIC:
                some = (moved(offset, x, eps)[:, None] + (moved(h, y, eps) - eps)[None, :]).to(tl.float32)
            terms += p * tl.where(p == 0, 0.0, some)
            if PLAN:
                at = plan + problem * n * m + row.to(tl.int64)[:, None] * m + column[None, :]
                tl.store(at, p, mask=row_in[:, None] & column_in[None, :])
        total += tl.sum(tl.sum(terms, axis=1), axis=0)
        misplaced += tl.sum(tl.abs(x * tl.sum(sent, axis=1) - row_mass), axis=0)
        mass += tl.sum(row_mass, axis=0)
    tl.store(value + problem, total)
    tl.store(error + problem, misplaced / tl.where(mass > 0, mass, 1.0))
