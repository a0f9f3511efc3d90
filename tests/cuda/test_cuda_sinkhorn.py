"""Sinkhorn iterations of the CUDA backend and their derivative against float64 autograd: tiles of 32, 64 and 128 rows
and columns, and what a cluster shares out."""

import math

import pytest
import torch
from problems import leaves, plain_iterations, random_problem
from sinkhorn_calls import by_autograd, by_kernels, check

from kd_kernels.testing.budget import assert_within_budget

INF, NAN = math.inf, math.nan
# Devices on which a problem beyond the tiles takes another form.
IN_ONE_BLOCK = {"capability": (8, 0)}
STREAMED = {"properties": {"shared_memory_per_block_optin": 16 << 10}}
IN_EIGHT_BLOCKS = {"properties": {"multi_processor_count": 64}}

each_value = pytest.mark.parametrize("value", ["transport", "entropic"])
each_tier = pytest.mark.parametrize(("n", "m"), [(21, 27), (40, 50), (97, 120), (131, 30)], ids=lambda k: str(k))


@pytest.mark.parametrize(
    ("n", "m"),
    [(1, 1), (7, 5), (31, 32), (32, 33), (63, 64), (65, 33), (127, 128), (128, 7), (129, 127), (5, 129), (201, 70)],
    ids=lambda k: str(k),
)
def test_sizes(emulated, n, m):
    check(emulated, *random_problem(n, m, 1, torch.float32), plan=True, iterations=2)


@each_value
@each_tier
def test_plain_normalisation(emulated, value, n, m):
    """The kernel matrix, scaled in turns under autograd: another path to the truth than logarithms."""
    problem = random_problem(n, m, 2, torch.float32)
    of_value, of_plan = torch.rand(2), torch.randn(2, n, m)
    actual = by_kernels(emulated, *problem, of_value, of_plan, eps=0.15, value=value)
    found = []
    for dtype in (torch.float64, torch.float32):
        leaf = leaves(*(x.to(dtype) for x in problem))
        plan = plain_iterations(*leaf, 0.15, 3)
        total = (plan * leaf[0]).sum((1, 2))
        if value == "entropic":
            total = total + 0.15 * (plan * (plan.log() - 1)).sum((1, 2))
        loss = (total * of_value).sum() + (plan * of_plan).sum()
        found.append((total, plan, *torch.autograd.grad(loss, leaf)))
    for name, truth, eager in zip(("value", "plan", "dcost", "da", "db"), *found, strict=True):
        assert_within_budget(actual[name], truth.detach(), eager.detach(), name, 0.0 if name[-1] in "et" else 1.0)


@pytest.mark.parametrize("device", [IN_ONE_BLOCK, STREAMED, IN_EIGHT_BLOCKS], ids=["one", "streamed", "eight"])
def test_how_a_problem_is_shared_changes_no_bit(emulated, device):
    cost, a, b = random_problem(139, 66, 1, torch.float32)
    weights = torch.ones(1), torch.randn(1, 139, 66)
    options = {"iterations": 6, "eps": 2e-3, "value": "entropic"}
    usual = by_kernels(emulated, cost, a, b, *weights, **options)
    other = by_kernels(emulated, cost, a, b, *weights, **options, device=device)
    assert all(torch.equal(usual[k], other[k]) for k in usual)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("n", "m"), [(15, 16), (50, 33), (70, 66), (7, 130)], ids=lambda k: str(k))
def test_sixteen_bits(emulated, dtype, n, m):
    check(emulated, torch.rand(1, n, m).to(dtype), iterations=2)


@each_tier
def test_new_frames_and_sixteen_bits(emulated, n, m):
    """The gradient is gathered in single precision over the frames."""
    cost, a, b = random_problem(n, m, 1, torch.bfloat16)
    check(emulated, cost, a, b, eps=1e-3, iterations=10)


@pytest.mark.parametrize(("n", "m"), [(13, 18), (36, 20), (66, 20), (131, 20)], ids=lambda k: str(k))
def test_strides(emulated, n, m):
    cost = torch.rand(m, n, 3, 2)[..., 0].permute(2, 1, 0)
    weights = torch.ones(3), torch.rand(3, n, m)
    same = by_kernels(emulated, cost.contiguous(), None, None, *weights)
    other = by_kernels(emulated, cost, None, None, *weights)
    assert all(torch.equal(same[k], other[k]) for k in same)


def test_eps_of_each_problem(emulated):
    check(emulated, *random_problem(21, 37, 3, torch.float32), eps=torch.tensor([1e-3, 1e-2, 5.0]), iterations=6)


@pytest.mark.parametrize(("n", "m"), [(12, 12), (40, 40), (80, 72), (131, 40)], ids=lambda k: str(k))
def test_new_frames(emulated, n, m):
    """Scalings pass 2^28 where the best assignment takes long to find: in most problems, and in these."""
    torch.manual_seed(0)
    cost, a, b = random_problem(n, m, 1, torch.float32)
    actual, _ = check(emulated, cost, a, b, eps=1e-3, iterations=20 if n == 12 else 12)
    history, offsets = actual["history"], actual["offsets"]
    assert ((history > 0) & ((history < 2.0**-28) | (history > 2.0**28))).any()
    assert not torch.equal(offsets[:, 1], offsets[:, 2])


@pytest.mark.parametrize("iterations", [1, 3])
@each_tier
def test_a_column_out_of_reach(emulated, iterations, n, m):
    """In the frame of the nearest columns it would be lost."""
    cost, a, b = random_problem(n, m, 1, torch.float32)
    cost[:, :, 3] += 200
    actual, truth = check(emulated, cost, a, b, eps=1e-2, iterations=iterations)
    assert not torch.equal(actual["offsets"][:, 0], actual["offsets"][:, 1])
    # Eager has four digits here: costs of 200 are divided by eps.
    torch.testing.assert_close(actual["dcost"].double(), truth["dcost"], rtol=0, atol=1e-5 * truth["dcost"].max())


@pytest.mark.parametrize("tol", [None, 0.9])
@each_tier
def test_a_column_that_next_to_nothing_reaches(emulated, tol, n, m):
    """The second frame, and scalings that are absorbed right away: with a tolerance, after the last iteration too."""
    cost, a, b = random_problem(n, m, 1, torch.float32)
    cost[:, :, 3] += 200
    cost[:, 0, 3] -= 20
    a[:, 0] = 1e-12
    check(emulated, cost, a, b, eps=1e-2, iterations=3, tol=tol)


@each_tier
def test_tolerance(emulated, n, m):
    """Every problem stops for itself, as if it had been asked for just so many iterations."""
    cost, a, b = random_problem(n, m, 3, torch.float32)
    cost[1] *= 1e-3
    weights = torch.ones(3), torch.randn(3, n, m)
    actual, _ = check(emulated, cost, a, b, tol=1e-2, iterations=20)
    run = actual["iterations"].tolist()
    assert 1 == run[1] < run[0] < 20
    assert (actual["error"] <= 1e-2).all()
    assert (actual["history"][1, 1:] == 0).all()
    stopped = by_kernels(emulated, cost, a, b, *weights, tol=1e-2, iterations=20)
    for i, t in enumerate(run):
        fixed = by_kernels(emulated, cost[i : i + 1], a[i : i + 1], b[i : i + 1], *(x[i : i + 1] for x in weights),
                           iterations=t)  # fmt: skip
        assert all(torch.equal(fixed[k][0], stopped[k][i]) for k in ("value", "plan", "f", "g", "error", "dcost", "da"))


def test_lengths_change_no_bit(emulated):
    """Problems of every tile, and larger, in one batch: each as if alone. What lies beyond is NaN, and not read."""
    rows, columns = torch.tensor([3, 40, 66, 140, 0, 32]), torch.tensor([5, 33, 9, 130, 4, 1])
    batch, n, m = 6, 141, 135
    cost, a, b = torch.full((batch, n, m), NAN), torch.full((batch, n), NAN), torch.full((batch, m), NAN)
    of_plan = torch.full((batch, n, m), NAN)
    alone = []
    options = {"eps": 5e-3, "iterations": 4, "value": "entropic"}
    for i, (p, q) in enumerate(zip(rows.tolist(), columns.tolist(), strict=True)):
        part = random_problem(p, q, 1, torch.float32) if p else tuple(map(torch.rand, ((1, p, q), (1, p), (1, q))))
        weights = torch.ones(1), torch.randn(1, p, q)
        cost[i, :p, :q], a[i, :p], b[i, :q], of_plan[i, :p, :q] = part[0][0], part[1][0], part[2][0], weights[1][0]
        alone.append(by_kernels(emulated, *part, *weights, **options))
    ragged = by_kernels(emulated, cost, a, b, torch.ones(batch), of_plan, lengths=torch.stack([rows, columns], 1),
                        **options)  # fmt: skip
    for i, (p, q) in enumerate(zip(rows.tolist(), columns.tolist(), strict=True)):
        for name in ("value", "error", "iterations"):
            assert torch.equal(ragged[name][i], alone[i][name][0]), name
        for name, sizes in (("f", (p,)), ("g", (q,)), ("da", (p,)), ("db", (q,)), ("plan", (p, q)), ("dcost", (p, q))):
            whole, beyond = ragged[name][i], -INF if name in "fg" else 0.0
            inside = tuple(slice(k) for k in sizes)
            assert torch.equal(whole[inside], alone[i][name][0]), name
            outside = torch.ones_like(whole, dtype=torch.bool)
            outside[inside] = False
            assert (whole[outside] == beyond).all(), name


@each_tier
def test_nothing_without_mass_is_read(emulated, n, m):
    cost, a, b = random_problem(n, m, 1, torch.float32)
    rows, columns = torch.arange(n) != 1, torch.arange(m) != 3
    weights = torch.ones(1), torch.zeros(1, n, m)
    a[:, 1], b[:, 3] = 0, 0
    cost[:, 1], cost[:, :, 3] = NAN, NAN
    whole = by_kernels(emulated, cost, a, b, *weights, iterations=2)
    part = random_problem(n, m, 1, torch.float32)
    part = cost[:, rows][:, :, columns], a[:, rows], b[:, columns]
    truth = by_autograd(*part, weights[0], weights[1][:, rows][:, :, columns], torch.float64, iterations=2)
    eager = by_autograd(*part, weights[0], weights[1][:, rows][:, :, columns], torch.float32, iterations=2)
    assert_within_budget(whole["value"], truth["value"], eager["value"], "value")
    assert_within_budget(whole["dcost"][:, rows][:, :, columns], truth["dcost"], eager["dcost"], "gradient")
    for name in ("plan", "dcost"):
        assert (whole[name][:, 1] == 0).all()
        assert (whole[name][:, :, 3] == 0).all()
    assert whole["f"][0, 1] == whole["g"][0, 3] == -INF
    assert whole["da"][0, 1] == whole["db"][0, 3] == 0


@each_value
@each_tier
def test_forbidden_pairs(emulated, value, n, m):
    cost, a, b = random_problem(n, m, 2, torch.float32)
    cost[0, 1, 2], cost[0, 3, : m - 1] = INF, INF
    cost[1, 2], cost[1, :, 3] = INF, INF  # nowhere to go
    check(emulated, cost, a, b, iterations=2, value=value)


@pytest.mark.parametrize("bad", [NAN, -INF], ids=str)
@each_tier
def test_bad_costs_stay_in_their_problem(emulated, bad, n, m):
    cost = torch.rand(2, n, m)
    cost[0, 1, 2] = bad
    result = by_kernels(emulated, cost, None, None, torch.ones(2), torch.ones(2, n, m), iterations=2)
    alone = by_kernels(emulated, cost[1:], None, None, torch.ones(1), torch.ones(1, n, m), iterations=2)
    assert result["value"][0].isnan()
    assert result["plan"][0].isnan().all()
    for name in ("value", "plan", "f", "g", "dcost"):
        assert torch.equal(result[name][1:], alone[name])
        assert result[name][1:].isfinite().all()


@each_tier
def test_warm_start(emulated, n, m):
    cost, a, b = random_problem(n, m, 1, torch.float32)
    start = torch.randn(1, m)
    start[0, 1], start[0, 2] = -INF, NAN
    check(emulated, cost, a, b, start=start, iterations=2)


@each_tier
@pytest.mark.parametrize("iterations", [1, 4])
def test_shifting_a_row_shifts_the_value_by_its_mass(emulated, iterations, n, m):
    """sum_j dL/dC_ij = (P 1)_i after any number of iterations: the first takes a shift of a row's costs up."""
    weights = torch.ones(1), torch.zeros(1, n, m)
    result = by_kernels(emulated, torch.rand(1, n, m), None, None, *weights, eps=0.05, iterations=iterations)
    torch.testing.assert_close(result["dcost"].sum(2), result["plan"].sum(2), rtol=1e-5, atol=1e-5)


@each_tier
def test_the_same_bits_in_any_order_of_threads(emulated, n, m):
    cost, a, b = random_problem(n, m, 1, torch.float32)
    weights = torch.ones(1), torch.rand(1, n, m)
    once, again = (
        by_kernels(emulated, cost, a, b, *weights, eps=1e-2, iterations=3, device={"seed": seed}) for seed in (1, 2)
    )
    assert all(torch.equal(once[k], again[k]) for k in once)


@pytest.mark.parametrize("shape", [(0, 3, 4), (2, 0, 4), (2, 3, 0), (2, 0, 140)], ids=str)
def test_empty(emulated, shape):
    check(emulated, torch.rand(shape), iterations=2)


@pytest.mark.parametrize("n", [3, 130])
def test_no_mass_at_all(emulated, n):
    cost, a, b = random_problem(n, 4, 2, torch.float32)
    a[0], b[1] = 0, 0
    check(emulated, cost, a, b, iterations=2, tol=1e-3)


@each_tier
def test_what_is_not_wanted(emulated, n, m):
    cost, a, b = random_problem(n, m, 2, torch.float32)
    eps = torch.full((2,), 1e-3, dtype=torch.float64)
    given = cost, a, b, eps, None
    arguments = *given, None, 8, -1.0, "transport"
    *some, history, offsets = emulated.sinkhorn(*arguments, False, False)
    assert some[3].shape == history.shape == offsets.shape == (0,)
    *every, history, offsets = emulated.sinkhorn(*arguments, True, True)
    assert all(torch.equal(some[k], every[k]) for k in (0, 1, 2, 4, 5))
    past = every[4], history, offsets, "transport"
    every = emulated.sinkhorn_backward(torch.ones(2), None, *given, *past, [True] * 3)
    for k in range(3):
        wanted = [k == other for other in range(3)]
        some = emulated.sinkhorn_backward(torch.ones(2), None, *given, *past, wanted)
        for x, y, want in zip(some, every, wanted, strict=True):
            assert torch.equal(x, y) if want else x.shape == (0,)


def test_many_terms(emulated):
    """More than there is room for beyond the tiles."""
    check(emulated, *random_problem(9, 130, 1, torch.float32), eps=0.2, iterations=27)
