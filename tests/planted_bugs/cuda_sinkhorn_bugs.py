"""Bugs of the CUDA kernels of Sinkhorn iterations: barriers, frames, lengths, and slips in the maths."""

import math
import sys
from pathlib import Path

import torch
from bugs import CudaBug
from comparisons import guarded_memory

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS / "cuda"), str(TESTS / "transport")]

from problems import random_problem  # noqa: E402
from sinkhorn_calls import by_autograd, by_kernels  # noqa: E402

INF, NAN = math.inf, math.nan
SEEDS = 2
EIGHT_BLOCKS = {"multi_processor_count": 64}


def near(actual, expected, what):
    """Infinite in the same places, and elsewhere within a part of the largest."""
    actual, finite = actual.double(), expected.isfinite()
    assert torch.equal(actual[~finite], expected[~finite]), f"{what}: infinite in other places than the truth"
    size = expected[finite].abs().amax().item() if finite.any() else 0.0
    if what == "error":  # a difference of masses, of which it is a share
        size = 1.0
    error = (actual - expected)[finite].abs()
    assert (error <= 3e-5 * size).all(), f"{what}: error {error.max():.1e} of {size:.1e}"


def compare(cuda, cost, a=None, b=None, properties=None, gradient=True, **options):
    """Results and gradients under several orders of threads against float64."""
    weights = torch.linspace(1, -0.5, len(cost)), torch.randn(cost.shape)
    truth = by_autograd(cost, a, b, *weights, torch.float64, **options)
    found = []
    for seed in range(SEEDS):
        with guarded_memory():
            device = {"seed": seed, "properties": properties}
            actual = by_kernels(cuda, cost, a, b, *weights, gradient=gradient, device=device, **options)
        for name in truth.keys() & actual.keys():
            near(actual[name], truth[name].double(), name)
        found.append(actual)
    for name, x in found[0].items():
        assert all(torch.equal(x, other[name]) for other in found), f"{name}: other bits in another order of threads"


def forward(problem):
    """The same without gradients: of kernels that have nothing to do with them."""

    def check(cuda):
        problem(cuda, gradient=False)

    check.__name__ = f"{problem.__name__}_forward"
    return check


def tiles(cuda, **options):
    """One warp, and two threads for a line; the mass of the tolerance is not 1."""
    for n, m, value in ((20, 30, "transport"), (70, 66, "entropic")):
        cost, a, b = random_problem(n, m, 2, torch.float32)
        compare(cuda, cost, a * 30, b * 30, value=value, tol=2e-2, iterations=6, **options)


def frames_of_tiles(cuda, **options):
    """Scalings that drift, a column that no row prefers, both, and stopping right behind; costs that lie by columns."""
    for n, m in ((12, 12), (70, 66)):
        cost, a, b = random_problem(n, m, 1, torch.float32)
        cost = cost.mT.contiguous().mT
        compare(cuda, cost, a, b, eps=2e-3, iterations=9, **options)
        cost[:, :, -1] += 200  # a thread of the last warp
        cost[:, 0, -1] -= 20
        a[:, 0] = 1e-12
        for iterations, tol in ((3, None), (3, 0.9)):
            compare(cuda, cost, a, b, eps=1e-2, iterations=iterations, tol=tol, **options)


def masses_and_starts(cuda, **options):
    """NaN where nothing is read, +inf where nothing may be sent."""
    for n, m in ((12, 9), (70, 66), (9, 131)):
        cost, a, b = random_problem(n, m, 1, torch.float32)
        cost[:, 2, 4] = cost[:, 5, ::3] = INF
        a[:, 3] = b[:, 6] = 0
        clean = cost.clone()
        clean[:, 3] = clean[:, :, 6] = 0
        start = torch.randn(1, m)
        weights = torch.ones(1), torch.zeros(1, n, m)
        cost[:, 3] = cost[:, :, 6] = NAN
        truth = by_autograd(clean, a, b, *weights, torch.float64, start=start)
        with guarded_memory():
            actual = by_kernels(cuda, cost, a, b, *weights, start=start, **options)
        for name in truth.keys() & actual.keys():
            near(actual[name], truth[name].double(), name)


def lengths(cuda, **options):
    """Problems of every tile and larger ones in one batch, each against itself alone."""
    rows, columns = torch.tensor([3, 40, 66, 131]), torch.tensor([5, 33, 9, 20])
    cost, a, b = torch.full((4, 132, 34), NAN), torch.full((4, 132), NAN), torch.full((4, 34), NAN)
    of_plan = torch.full((4, 132, 34), NAN)
    parts = []
    for i, (n, m) in enumerate(zip(rows.tolist(), columns.tolist(), strict=True)):
        part = random_problem(n, m, 1, torch.float32)
        of_plan[i, :n, :m] = torch.rand(n, m)
        cost[i, :n, :m], a[i, :n], b[i, :m] = (x[0] for x in part)
        parts.append(by_autograd(*part, torch.ones(1), of_plan[i : i + 1, :n, :m], torch.float64))
    found = by_kernels(cuda, cost, a, b, torch.ones(4), of_plan, lengths=torch.stack([rows, columns], 1), **options)
    for i, (n, m) in enumerate(zip(rows.tolist(), columns.tolist(), strict=True)):
        for name in parts[i].keys() & found.keys():
            sizes = {"f": (n,), "g": (m,), "da": (n,), "db": (m,), "plan": (n, m), "dcost": (n, m)}.get(name, ())
            near(found[name][i][tuple(slice(k) for k in sizes)], parts[i][name][0].double(), name)


def shares(cuda, **options):
    """In one block, two and eight."""
    for batch, properties in ((3, None), (1, None), (1, EIGHT_BLOCKS)):
        cost, a, b = random_problem(131, 20, batch, torch.float32)
        compare(cuda, cost, a * 30, b * 30, properties, tol=2e-2, iterations=6, value="entropic", **options)
    compare(cuda, *random_problem(9, 130, 1, torch.float32), EIGHT_BLOCKS, iterations=2, **options)


def frames_of_shares(cuda, **options):
    cost, a, b = random_problem(131, 40, 1, torch.float32)
    compare(cuda, cost, a, b, EIGHT_BLOCKS, eps=1e-3, iterations=12, **options)
    cost[:, :, -1] += 200  # not a thread of the first warp
    cost[:, 0, -1] -= 20
    a[:, 0] = 1e-12
    for iterations, tol in ((3, None), (3, 0.9)):
        compare(cuda, cost, a, b, EIGHT_BLOCKS, eps=1e-2, iterations=iterations, tol=tol, **options)


def many_terms(cuda):
    """More than there is room for."""
    compare(cuda, *random_problem(9, 130, 1, torch.float32), EIGHT_BLOCKS, eps=0.2, iterations=26)


FORWARD, BACKWARD = ("sinkhorn",), ("sinkhorn", "sinkhorn_backward")
TILE, SOLVER, REVERSE, SHARE, SHARE_SOLVER, SHARE_REVERSE = (
    f"cuda/sinkhorn_{name}.h"
    for name in ("tile", "tile_kernel", "tile_backward_kernel", "share", "share_kernel", "share_backward_kernel")
)
tiles_forward, frames_forward, shares_forward, shared_frames_forward, masses_forward = map(
    forward, (tiles, frames_of_tiles, shares, frames_of_shares, masses_and_starts)
)


def bug(file, original, mutated, check, why):
    return CudaBug(file, original, mutated, check, FORWARD if check.__name__.endswith("_forward") else BACKWARD, why)


def without(file, lines, check):
    """Of lines that end with a barrier: without that."""
    kept, _, barrier = lines.rpartition("\n")
    return bug(file, lines, kept + "\n", check, f"{file}: no {barrier.strip()} after {kept.strip()}")


BUGS = [
    # Tiles
    without(SOLVER, "publish(tile.shared->x[0], x);\n      tile.sync();", tiles_forward),
    without(
        SOLVER,
        "x = scaled(tile.a(), rho, true);\n    tile.publish(tile.shared->x[0], x);\n    tile.sync();",
        frames_forward,
    ),
    bug(
        SOLVER,
        "call.tolerance * mass) break;",
        "call.tolerance) break;",
        tiles_forward,
        "the mass misplaced, not its share",
    ),
    bug(SOLVER, "tile.any(tile.b() > 0.0f && sum <", "tile.any(false && sum <", frames_forward, "no frame B"),
    bug(SOLVER, "p == 0.0f ? 0.0f : p *", "p *", masses_forward, "0 times an infinite cost"),
    bug(TILE, "counts ? costs(i, j) : kInfinity", "costs(i, j)", masses_forward, "costs of lines without mass"),
    bug("cuda/sinkhorn_launch.h", "if (holds(64))", "if (largest == 64)", forward(lengths), "a tile left out"),
    without(REVERSE, "tile.raise(t > 1 && has_drifted(rho_before, sigma_before));\n      tile.sync();", tiles),
    bug(
        REVERSE,
        "tile.any(has_drifted(rho, sigma))) release(t, rho, sigma);",
        "false) release(t, rho, sigma);",
        frames_of_tiles,
        "new offsets of an iteration that was not run",
    ),
    bug(REVERSE, "if (kept) gradient += call.total[at];", "", frames_of_tiles, "the gradient of one frame alone"),
    bug(REVERSE, "value_centre + centre", "centre", tiles, "the gradient of the centres left out"),
    # Shares
    without(SHARE, "row(first + lane, mine);\n        }\n        __syncthreads();", shares_forward),
    bug(
        SHARE,
        "part < kSinkhornParts; ++part) total",
        "part < kSinkhornParts - 1; ++part) total",
        shares_forward,
        "a part's rows left out",
    ),
    bug(
        SHARE_SOLVER,
        "      share.barrier();\n      if (t > 0 &&",
        "      if (t > 0 &&",
        shares_forward,
        "sums of other blocks read before they are there",
    ),
    without(
        SHARE_SOLVER,
        "y[j] = scaled(share.b(j), sigma[j], true);\n    });\n    share.barrier();",
        shared_frames_forward,
    ),
    bug(
        SHARE_REVERSE,
        "flush();\n        share.barrier();  // terms are written anew",
        "flush();",
        many_terms,
        "terms written anew while others read them",
    ),
    bug(
        SHARE_REVERSE,
        "terms + 2 > kSinkhornTerms",
        "terms > kSinkhornTerms",
        many_terms,
        "more terms than there is room for",
    ),
]
