"""The derivative of the iterations, from the rho and sigma each of them left behind.

With G = dL/dP, K of an iteration's frame, and t going down from the last iteration:

    beta_j = (G^T P)_j / b_j,  alpha_i = (G P)_i / a_i at first, 0 later;
    y~_j = y_j^t beta_j,  alpha_i -= rho_i^t (K y~)_i,  x~_i = x_i^t alpha_i,  beta_j = -sigma_j^{t-1} (K^T x~)_j;
    dL/dC = P - (G P - sum_t K (x^t y~^T + x~ y^{t-1}^T)) / eps, the first P for the cost in <P, C>;
    dL/da = sum_t alpha,  dL/db = sum_t beta.

alpha and beta are the derivatives by the logarithms of x and y over the masses, the same in every frame. Those of every
iteration are kept, so that the gradient of a tile is one sweep over the iterations with K in registers.
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
    relative,
    sizes,
)


@triton.jit
def _any_far(masses, scalings, count):
    far = False
    for i in tl.range(tl.cdiv(count, TILE), disable_licm=True):
        line, there = lines(i, count)
        mass = tl.load(masses + line, mask=there, other=0.0)
        far = far | is_far(tl.load(scalings + line, mask=there, other=0.0), mass)
    return far


@triton.jit
def _any_differ(masses, frame, other_frame, count):
    differ = False
    for i in tl.range(tl.cdiv(count, TILE), disable_licm=True):
        line, there = lines(i, count)
        mass = tl.load(masses + line, mask=there, other=0.0)
        other = tl.load(other_frame + line, mask=there, other=0.0)
        same = (tl.load(frame + line, mask=there, other=0.0) == other) | ~(mass > 0)
        differ = differ | (tl.min(same.to(tl.int32), axis=0) == 0)
    return differ


@triton.jit(do_not_specialize=SIZES, do_not_specialize_on_alignment=FOREIGN)
def sinkhorn_turns_kernel(
    masses, lengths, run, scalings, frames,  # (B, n + m), (B, 2), (B,), (B, T, n + m), (B, 3, n + m)
    turns,  # (B, T + 1)
    n, m, iterations,
    HAS_LENGTHS: tl.constexpr,
):  # fmt: skip
    """Where the frame changed: after iteration t > 0; for 0, between the rows and the columns of the first."""
    problem = (tl.program_id(0) // (iterations + 1)).to(tl.int64)
    t = tl.program_id(0) % (iterations + 1)
    rows, columns = sizes(lengths, problem, n, m, HAS_LENGTHS)
    masses += problem * (n + m)
    frames += problem * 3 * (n + m)
    last = tl.load(run + problem)
    if t == 0:
        turned = _any_differ(masses, frames, frames + (n + m), rows)
        turned = turned | _any_differ(masses + n, frames + n, frames + (n + m) + n, columns)
    else:
        # After the last iteration too, where a tolerance was met before the next one.
        scalings += (problem * iterations + t - 1) * (n + m)
        some = t < tl.where(last < iterations, last + 1, last)
        turned = _any_far(masses, scalings, tl.where(some, rows, 0))
        turned = turned | _any_far(masses + n, scalings + n, tl.where(some, columns, 0))
    tl.store(turns + problem * (iterations + 1) + t, turned.to(tl.int32))


@triton.jit
def _last_scalings(scalings, turns, last, n, m):
    """Where rho and sigma of the last iteration are, and whether its frame has absorbed either."""
    absorbed = tl.load(turns + last) > 0
    given = (last == 1) & (tl.load(turns) > 0)
    return scalings + (last - 1) * (n + m), absorbed | given, absorbed


@triton.jit
def _gains(
    cost, plan_upstream, upstream, row, row_mass, rho, f, column, column_mass, sigma, h, centre, eps,
    row_stride, column_stride, plan_row_stride, plan_column_stride, ENTROPIC: tl.constexpr, HAS_PLAN: tl.constexpr,
):  # fmt: skip
    """P over both masses, and G less the centre of its column times that, for lines with these scalings."""
    some = costs(cost, row, row_mass, column, column_mass, row_stride, column_stride)
    ratio = exponentials(some, f, h, eps) * rho[:, None] * sigma[None, :]
    gain = some.to(tl.float64)
    if ENTROPIC:
        gain = moved(f, row_mass * rho, eps)[:, None] + moved(h, column_mass * sigma, eps)[None, :]
    gain = tl.where(ratio == 0, 0.0, gain) * upstream
    if HAS_PLAN:
        at = plan_upstream + row.to(tl.int64)[:, None] * plan_row_stride
        at += column.to(tl.int64)[None, :] * plan_column_stride
        gain += tl.load(at, mask=(row_mass > 0)[:, None] & (column_mass > 0)[None, :], other=0.0)
    return ratio, ratio * (gain - centre[None, :]).to(tl.float32)


@triton.jit(do_not_specialize=SIZES, do_not_specialize_on_alignment=FOREIGN)
def sinkhorn_gain_kernel(
    upstream, plan_upstream, cost, masses, eps, lengths, run, scalings, frames, turns,
    shares, current, centres,  # (B, T, n + m), (B, n + m), (B, m)
    n, m, iterations, batch_stride, row_stride, column_stride, plan_batch_stride, plan_row_stride, plan_column_stride,
    HAS_LENGTHS: tl.constexpr, ENTROPIC: tl.constexpr, HAS_PLAN: tl.constexpr,
):  # fmt: skip
    """alpha to begin with to `current`, beta to the last iteration's share, and what is taken out of both and of G.

    A constant that G has in a column does nothing, as the sum of the column is given; only dL/db has it. Without it the
    gradient of the cost, where all of G is divided by eps, is no small difference of large numbers.
    """
    problem = tl.program_id(0).to(tl.int64)
    rows, columns = sizes(lengths, problem, n, m, HAS_LENGTHS)
    cost += problem * batch_stride
    plan_upstream += problem * plan_batch_stride
    masses += problem * (n + m)
    current += problem * (n + m)
    centres += problem * m
    frame = frames + (problem * 3 + 2) * (n + m)
    eps = tl.load(eps + problem)
    upstream = tl.load(upstream + problem)
    last = tl.load(run + problem)
    shares += (problem * iterations + last - 1) * (n + m)
    scalings, rho_absorbed, sigma_absorbed = _last_scalings(
        scalings + problem * iterations * (n + m), turns + problem * (iterations + 1), last, n, m
    )
    # beta of G, then alpha and the rest of beta of what G is less the former.
    for centred in tl.static_range(2):
        for i in tl.range(tl.cdiv(rows, STRIP), disable_licm=True):
            row, row_in = lines(i, rows, STRIP)
            row_mass = tl.load(masses + row, mask=row_in, other=0.0)
            rho = relative(tl.load(scalings + row, mask=row_in, other=0.0), rho_absorbed)
            f = tl.load(frame + row, mask=row_in, other=0.0)
            alpha = tl.zeros([STRIP, TILE], tl.float32)
            for j in tl.range(tl.cdiv(columns, TILE), disable_licm=True):
                column, column_in = lines(j, columns)
                column_mass = tl.load(masses + n + column, mask=column_in, other=0.0)
                sigma = relative(tl.load(scalings + n + column, mask=column_in, other=0.0), sigma_absorbed)
                h = tl.load(frame + n + column, mask=column_in, other=0.0)
                centre = tl.zeros([TILE], tl.float32)
                if centred:
                    centre = tl.load(centres + column, mask=column_in, other=0.0)
                _, gain = _gains(
                    cost, plan_upstream, upstream, row, row_mass, rho, f, column, column_mass, sigma, h, centre, eps,
                    row_stride, column_stride, plan_row_stride, plan_column_stride, ENTROPIC, HAS_PLAN,
                )  # fmt: skip
                alpha += gain * column_mass[None, :]
                at = (shares + n if centred else centres) + column
                beta = tl.load(at, mask=column < tl.where(i > 0, columns, 0), other=0.0)
                beta += tl.sum(gain * row_mass[:, None], axis=0)
                tl.store(at, beta, mask=column_in)
            if centred:
                tl.store(current + row, tl.sum(alpha, axis=1), mask=row_in)
            publish()


@triton.jit(do_not_specialize=SIZES, do_not_specialize_on_alignment=FOREIGN)
def sinkhorn_backward_kernel(
    cost, masses, eps, lengths, run, scalings, frames, turns,
    kernel, current, shares,  # (B, tiles, TILE, TILE), (B, n + m), (B, T, n + m)
    n, m, iterations, batch_stride, row_stride, column_stride,
    HAS_LENGTHS: tl.constexpr,
):  # fmt: skip
    """All iterations backwards: alpha and beta of each to `shares`.

    The last frame becomes the one before every absorption in turn.
    """
    problem = tl.program_id(0).to(tl.int64)
    rows, columns = sizes(lengths, problem, n, m, HAS_LENGTHS)
    row_tiles = tl.cdiv(rows, TILE)
    column_tiles = tl.cdiv(m, TILE).to(tl.int64)
    cost += problem * batch_stride
    masses += problem * (n + m)
    current += problem * (n + m)
    turns += problem * (iterations + 1)
    frame = frames + (problem * 3 + 2) * (n + m)
    kernel += problem * tl.cdiv(n, TILE) * column_tiles * (TILE * TILE)
    eps = tl.load(eps + problem)
    step = tl.load(run + problem)
    last = step
    stale = True
    while step > 0:
        now = scalings + (problem * iterations + step - 1) * (n + m)
        share = shares + (problem * iterations + step - 1) * (n + m)
        given = (step == 1) & (tl.load(turns) > 0)
        if tl.load(turns + step) > 0:
            absorb(frame, now, tl.where(given, 0, rows), -eps)
            absorb(frame + n, now + n, columns, -eps)
            publish()
            stale = True
        if stale:
            build(cost, masses, frame, kernel, eps, n, rows, columns, column_tiles, row_stride, column_stride)
            stale = False
        for j in tl.range(tl.cdiv(tl.where(rows > 0, columns, 0), TILE), disable_licm=True):
            column, column_in = lines(j, columns)
            y = tl.load(masses + n + column, mask=column_in, other=0.0)
            y *= tl.load(now + n + column, mask=column_in, other=0.0)
            y *= tl.load(share + n + column, mask=column_in, other=0.0)
            tl.store(current + n + column, y, mask=column_in)
        publish()
        for i in tl.range(row_tiles, disable_licm=True):
            row, row_in = lines(i, rows)
            rho = tl.load(now + row, mask=row_in, other=0.0)
            taken = tl.zeros([TILE, TILE], tl.float32)
            for j in tl.range(tl.cdiv(columns, TILE), disable_licm=True):
                column, column_in = lines(j, columns)
                y = tl.load(current + n + column, mask=column_in, other=0.0)
                k = tl.load(entries(kernel, i, j, column_tiles))
                taken = tl.fma(k, tl.broadcast_to(y[None, :], [TILE, TILE]), taken)
            alpha = tl.load(current + row, mask=row < tl.where(step == last, rows, 0), other=0.0)
            alpha -= relative(rho, given) * tl.sum(taken, axis=1)
            tl.store(share + row, alpha, mask=row_in)
            x = tl.load(masses + row, mask=row_in, other=0.0) * rho * alpha
            for j in tl.range(tl.cdiv(tl.where(step > 1, columns, 0), TILE), disable_licm=True):
                column, column_in = lines(j, columns)
                at = share - (n + m) + n + column
                total = tl.load(at, mask=column < tl.where(i > 0, columns, 0), other=0.0)
                total += tl.sum(tl.load(entries(kernel, i, j, column_tiles)) * x[:, None], axis=0)
                tl.store(at, total, mask=column_in)
            publish()
        step -= 1
        absorbed = tl.load(turns + step) > 0
        for j in tl.range(tl.cdiv(tl.where((step > 0) & (rows > 0), columns, 0), TILE), disable_licm=True):
            column, column_in = lines(j, columns)
            sigma = relative(tl.load(now - (n + m) + n + column, mask=column_in, other=0.0), absorbed)
            at = share - (n + m) + n + column
            tl.store(at, -sigma * tl.load(at, mask=column_in, other=0.0), mask=column_in)
        publish()


@triton.jit(do_not_specialize=SIZES, do_not_specialize_on_alignment=FOREIGN)
def sinkhorn_mass_gradient_kernel(
    lengths, run, shares, centres,
    a_gradient, b_gradient,  # (B, n), (B, m)
    n, m, iterations,
    HAS_LENGTHS: tl.constexpr,
):  # fmt: skip
    """dL/da and dL/db of a tile of lines; 0 beyond the lengths."""
    row_tiles = tl.cdiv(n, TILE)
    tiles = row_tiles + tl.cdiv(m, TILE)
    problem = (tl.program_id(0) // tiles).to(tl.int64)
    tile = tl.program_id(0) % tiles
    rows, columns = sizes(lengths, problem, n, m, HAS_LENGTHS)
    shares += problem * iterations * (n + m)
    step = tl.load(run + problem)
    if tile < row_tiles:
        row, row_in = lines(tile, rows)
        total = tl.zeros([TILE], tl.float32)
        while step > 0:
            step -= 1
            total += tl.load(shares + step * (n + m) + row, mask=row_in, other=0.0)
        tl.store(a_gradient + problem * n + row, total, mask=row < n)
    else:
        column, column_in = lines(tile - row_tiles, tl.where(rows > 0, columns, 0))
        total = tl.load(centres + problem * m + column, mask=column_in, other=0.0)
        while step > 0:
            step -= 1
            total += tl.load(shares + step * (n + m) + n + column, mask=column_in, other=0.0)
        tl.store(b_gradient + problem * m + column, total, mask=column < m)


@triton.jit(do_not_specialize=SIZES, do_not_specialize_on_alignment=FOREIGN)
def sinkhorn_gradient_kernel(
    upstream, plan_upstream, cost, masses, eps, lengths, run, scalings, frames, turns, centres, shares,
    gradient,  # (B, n, m)
    n, m, iterations, batch_stride, row_stride, column_stride, plan_batch_stride, plan_row_stride, plan_column_stride,
    HAS_LENGTHS: tl.constexpr, ENTROPIC: tl.constexpr, HAS_PLAN: tl.constexpr,
):  # fmt: skip
    """dL/dC of a strip of a tile, in the frames from the last to the first. `frames`: as the iterations left them."""
    strips, column_tiles = tl.cdiv(n, STRIP), tl.cdiv(m, TILE)
    tile = tl.program_id(0).to(tl.int64)
    j = (tile % column_tiles).to(tl.int32)
    i = (tile // column_tiles % strips).to(tl.int32)
    problem = tile // column_tiles // strips
    rows, columns = sizes(lengths, problem, n, m, HAS_LENGTHS)
    row, row_in = lines(i, rows, STRIP)
    column, column_in = lines(j, columns)
    total = tl.zeros([STRIP, TILE], tl.float32)
    eps = tl.load(eps + problem)
    upstream = tl.load(upstream + problem)
    if (i * STRIP < rows) & (j * TILE < columns):
        cost += problem * batch_stride
        plan_upstream += problem * plan_batch_stride
        masses += problem * (n + m)
        scalings += problem * iterations * (n + m)
        shares += problem * iterations * (n + m)
        turns += problem * (iterations + 1)
        frames += problem * 3 * (n + m)
        inverse_eps = (1.0 / eps).to(tl.float32)
        row_mass = tl.load(masses + row, mask=row_in, other=0.0)
        column_mass = tl.load(masses + n + column, mask=column_in, other=0.0)
        step = tl.load(run + problem)
        second = tl.load(turns) > 0
        now, rho_absorbed, sigma_absorbed = _last_scalings(scalings, turns, step, n, m)
        rho = relative(tl.load(now + row, mask=row_in, other=0.0), rho_absorbed)
        sigma = relative(tl.load(now + n + column, mask=column_in, other=0.0), sigma_absorbed)
        f = tl.load(frames + 2 * (n + m) + row, mask=row_in, other=0.0)
        h = tl.load(frames + 2 * (n + m) + n + column, mask=column_in, other=0.0)
        centre = tl.load(centres + problem * m + column, mask=column_in, other=0.0)
        ratio, gain = _gains(
            cost, plan_upstream, upstream, row, row_mass, rho, f, column, column_mass, sigma, h, centre, eps,
            row_stride, column_stride, plan_row_stride, plan_column_stride, ENTROPIC, HAS_PLAN,
        )  # fmt: skip
        total = (ratio * upstream - gain * inverse_eps) * row_mass[:, None] * column_mass[None, :]
        some = costs(cost, row, row_mass, column, column_mass, row_stride, column_stride)
        k = exponentials(some, f, h, eps)
        pairs = tl.zeros([STRIP, TILE], tl.float32)
        while step > 0:
            now = scalings + (step - 1) * (n + m)
            share = shares + (step - 1) * (n + m)
            given = (step == 1) & second
            rho = tl.load(now + row, mask=row_in, other=0.0)
            sigma = tl.load(now + n + column, mask=column_in, other=0.0)
            if tl.load(turns + step) > 0:
                total += k * pairs * inverse_eps
                pairs = tl.zeros([STRIP, TILE], tl.float32)
                f = tl.where(given, f, moved(f, rho, -eps))
                h = moved(h, sigma, -eps)
                some = costs(cost, row, row_mass, column, column_mass, row_stride, column_stride)
                k = exponentials(some, f, h, eps)
            x = row_mass * relative(rho, given)
            y = column_mass * sigma * tl.load(share + n + column, mask=column_in, other=0.0)
            pairs += x[:, None] * y[None, :]
            if given:
                total += k * pairs * inverse_eps
                pairs = tl.zeros([STRIP, TILE], tl.float32)
                f = tl.load(frames + row, mask=row_in, other=0.0)
                h = tl.load(frames + n + column, mask=column_in, other=0.0)
                some = costs(cost, row, row_mass, column, column_mass, row_stride, column_stride)
                k = exponentials(some, f, h, eps)
            x = row_mass * rho * tl.load(share + row, mask=row_in, other=0.0)
            step -= 1
            sigma = tl.load(now - (n + m) + n + column, mask=column < tl.where(step > 0, columns, 0), other=1.0)
            y = column_mass * relative(sigma, tl.load(turns + step) > 0)
            y = tl.where(step > 0, y, tl.where(column_mass > 0, 1.0, 0.0))
            pairs += x[:, None] * y[None, :]
        total += k * pairs * inverse_eps
    row, row_in = lines(i, n, STRIP)
    column, column_in = lines(j, m)
    at = gradient + problem * n * m + row.to(tl.int64)[:, None] * m + column[None, :]
    tl.store(at, total.to(gradient.dtype.element_ty), mask=row_in[:, None] & column_in[None, :])
