"""The Triton kernels of Sinkhorn iterations against float64 autograd through the logarithmic form.

Triton's interpreter takes a hundredth of a second for a tile and iteration: problems and iterations are few.
"""

import math

import pytest
import torch
from problems import random_problem
from torch import Tensor

import kd_kernels as kd
from kd_kernels import ops
from kd_kernels.testing.budget import assert_within_budget

pytest.importorskip("triton")
CHECKS = "test_schema", "test_faketensor"  # the others run the iterations many times over
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def solve(cost, a, b, weights, dtype, backend, **options):
    """Everything a solution has, and the gradients of a weighted sum of value and plan."""
    device = DEVICE if backend == "triton" else "cpu"
    leaves = [None if x is None else x.detach().to(device, dtype).requires_grad_() for x in (cost, a, b)]
    options = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in options.items()}
    result = kd.sinkhorn(*leaves, backend=backend, return_plan=True, **options)
    of_value, of_plan = (x.to(device, result.value.dtype) for x in weights)
    ((result.value * of_value).sum() + (result.plan * of_plan).sum()).backward()
    found = {"value": result.value, "f": result.f, "g": result.g, "plan": result.plan, "error": result.marginal_error}
    found |= {f"d{n}": x.grad for n, x in zip(("cost", "a", "b"), leaves, strict=True) if x is not None}
    return {k: x.detach().cpu() for k, x in found.items()}, result.iterations.cpu()


def check(cost, a=None, b=None, *, plan=False, **options):
    """Within twice the error of eager float32, from the very numbers the tensors hold."""
    weights = torch.rand(cost.shape[:-2]) + 0.5, torch.rand(cost.shape) * plan
    actual, iterations = solve(cost, a, b, weights, cost.dtype, "triton", **options)
    truth, expected = solve(cost, a, b, weights, torch.float64, "reference", **options)
    eager, _ = solve(cost, a, b, weights, torch.float32, "reference", **options)
    assert torch.equal(iterations, expected)
    for name, x in actual.items():
        # The others are sums and differences of masses, costs and potentials, numbers about 1.
        size = 0.0 if name in ("value", "plan", "dcost") else 1.0
        assert_within_budget(x, truth[name], eager[name].to(x.dtype), name, size)
    return actual, truth


@pytest.mark.parametrize(
    ("value", "order"), [("transport", "rows_first"), ("entropic", "rows_first"), ("transport", "columns_first")]
)
def test_value_and_gradients(value, order):
    check(*random_problem(21, 37, 1, torch.float32), plan=True, value=value, order=order, iterations=3)


def test_without_masses():
    check(torch.rand(1, 17, 14), iterations=3)


def test_eps_of_each_problem():
    check(*random_problem(21, 37, 3, torch.float32), eps=torch.tensor([1e-3, 1e-2, 5.0]), iterations=6)


@pytest.mark.parametrize(("n", "m"), [(70, 130), (1, 66), (130, 1)])
def test_several_tiles(n, m):
    check(*random_problem(n, m, 1, torch.float32), eps=0.02, iterations=2)


@pytest.mark.parametrize("iterations", [1, 3])
def test_a_column_out_of_reach(iterations):
    """In the frame of the nearest columns it would be lost."""
    cost, a, b = random_problem(21, 37, 1, torch.float32)
    cost[:, :, 3] += 200
    actual, truth = check(cost, a, b, eps=1e-2, iterations=iterations)
    # Eager has four digits here: costs of 200 are divided by eps.
    torch.testing.assert_close(actual["dcost"].double(), truth["dcost"], rtol=0, atol=1e-5 * truth["dcost"].max())


@pytest.mark.parametrize("tol", [None, 0.9])
def test_a_column_that_next_to_nothing_reaches(tol):
    """The second frame, and scalings that are absorbed right away: with a tolerance, after the last iteration too."""
    cost, a, b = random_problem(21, 37, 1, torch.float32)
    cost[:, :, 3] += 200
    cost[:, 0, 3] -= 20
    a[:, 0] = 1e-12
    check(cost, a, b, eps=1e-2, iterations=3, tol=tol)


def test_a_row_far_away():
    cost, a, b = random_problem(21, 37, 1, torch.float32)
    cost[:, 2] += 50
    check(cost, a, b, eps=1e-2, iterations=3)


def test_absorption():
    """Scalings pass 2^28 where the best assignment takes long to find."""
    cost, a, b = random_problem(12, 12, 1, torch.float32)
    history, frames = scalings_and_frames(cost, a, b, 1e-3, 20)
    far = (history > 0) & ((history < 2.0**-28) | (history > 2.0**28))
    assert far.any()
    assert not torch.equal(frames[:, 1], frames[:, 2])
    check(cost, a, b, eps=1e-3, iterations=20)


def scalings_and_frames(cost, a, b, eps, iterations):
    eps = torch.full((cost.shape[0],), eps, dtype=torch.float64, device=DEVICE)
    a, b = (None if x is None else x.to(DEVICE) for x in (a, b))
    *_, history, offsets = ops.sinkhorn(
        cost.to(DEVICE), a, b, eps, None, None, iterations, -1.0, "transport", False, True, "triton"
    )
    return history.cpu(), offsets.cpu()


def test_history_is_that_of_the_iterations():
    cost, a, b = random_problem(3, 4, 1, torch.float32)
    history, offsets = scalings_and_frames(cost, a, b, 0.3, 2)
    kernel = ((offsets[0, 0, :3, None] + offsets[0, 0, None, 3:] - cost[0].double()) / 0.3).exp()
    y = torch.ones(4, dtype=torch.float64)
    for t in range(2):
        rho = 1 / (kernel @ y)
        sigma = 1 / (kernel.T @ (a[0] * rho))
        y = b[0] * sigma
        torch.testing.assert_close(history[0, t].double(), torch.cat([rho, sigma]), rtol=1e-6, atol=0)


def test_tolerance():
    cost, a, b = random_problem(11, 7, 2, torch.float32)
    cost[1] *= 1e-3
    check(cost, a, b, tol=3e-2, iterations=20)
    result = kd.sinkhorn(*(x.to(DEVICE) for x in (cost, a, b)), tol=3e-2, iterations=20, backend="triton")
    assert 1 == result.iterations[1] < result.iterations[0] < 20
    assert (result.marginal_error <= 3e-2).all()


def test_padding_changes_no_bit():
    n, m = 70, 9
    cost, a, b = random_problem(3, 5, 1, torch.float32)
    padded = torch.full((1, n, m), math.nan)
    padded[:, :3, :5] = cost
    padded_a, padded_b = torch.full((1, n), 2.0), torch.full((1, m), 3.0)
    padded_a[:, :3], padded_b[:, :5] = a, b
    weights = torch.ones(1), torch.zeros(1, 3, 5)
    options = {"eps": 1e-2, "iterations": 3, "value": "entropic"}
    alone, _ = solve(cost, a, b, weights, torch.float32, "triton", **options)
    lengths = torch.tensor([3]), torch.tensor([5])
    leaves = [x.to(DEVICE).requires_grad_() for x in (padded, padded_a, padded_b)]
    lengths = tuple(x.to(DEVICE) for x in lengths)
    ragged = kd.sinkhorn(*leaves, lengths=lengths, backend="triton", return_plan=True, **options)
    ragged.value.sum().backward()
    assert torch.equal(ragged.value.detach().cpu(), alone["value"])
    assert torch.equal(ragged.marginal_error.cpu(), alone["error"])
    for name, x, beyond in (("f", ragged.f, -math.inf), ("da", leaves[1].grad, 0)):
        assert torch.equal(x[:, :3].cpu(), alone[name])
        assert (x[:, 3:] == beyond).all()
    for name, x, beyond in (("g", ragged.g, -math.inf), ("db", leaves[2].grad, 0)):
        assert torch.equal(x[:, :5].cpu(), alone[name])
        assert (x[:, 5:] == beyond).all()
    for name, x in (("plan", ragged.plan), ("dcost", leaves[0].grad)):
        assert torch.equal(x[:, :3, :5].detach().cpu(), alone[name])
        assert x.detach().sum().isfinite()
        assert torch.count_nonzero(x) <= 15


def test_nothing_without_mass_is_read():
    cost, a, b = random_problem(4, 5, 1, torch.float32)
    kept = torch.tensor([0, 2, 3]), torch.tensor([0, 1, 2, 4])
    small, _ = solve(
        cost[:, kept[0]][:, :, kept[1]], a[:, kept[0]], b[:, kept[1]], (torch.ones(1), torch.zeros(1, 3, 4)),
        torch.float32, "triton", iterations=2,
    )  # fmt: skip
    a[:, 1], b[:, 3] = 0, 0
    cost[:, 1], cost[:, :, 3] = math.nan, math.nan
    whole, _ = solve(cost, a, b, (torch.ones(1), torch.zeros(1, 4, 5)), torch.float32, "triton", iterations=2)
    torch.testing.assert_close(whole["value"], small["value"], rtol=1e-6, atol=0)
    torch.testing.assert_close(whole["dcost"][:, kept[0]][:, :, kept[1]], small["dcost"], rtol=1e-5, atol=1e-7)
    for name, dead in (("plan", 0), ("dcost", 0)):
        assert (whole[name][:, 1] == dead).all()
        assert (whole[name][:, :, 3] == dead).all()
    assert (whole["f"][:, 1] == -math.inf).all()
    assert (whole["g"][:, 3] == -math.inf).all()
    assert (whole["da"][:, 1] == 0).all()
    assert (whole["db"][:, 3] == 0).all()


@pytest.mark.parametrize("value", ["transport", "entropic"])
def test_forbidden_pairs(value):
    cost, a, b = random_problem(14, 15, 2, torch.float32)
    cost[0, 1, 2], cost[0, 3, :14] = math.inf, math.inf
    cost[1, 2], cost[1, :, 3] = math.inf, math.inf  # nowhere to go
    check(cost, a, b, iterations=2, value=value)


@pytest.mark.parametrize("bad", [math.nan, -math.inf])
def test_bad_costs_stay_in_their_problem(bad):
    cost = torch.rand(2, 3, 4)
    cost[0, 1, 2] = bad
    leaf = cost.to(DEVICE).requires_grad_()
    result = kd.sinkhorn(leaf, iterations=2, backend="triton", return_plan=True)
    result.value[1].backward()
    alone = kd.sinkhorn(cost[1:].to(DEVICE), iterations=2, backend="triton", return_plan=True)
    assert result.value[0].isnan()
    assert result.plan[0].isnan().all()
    assert torch.equal(result.value[1:].detach(), alone.value)
    assert torch.equal(result.plan[1:].detach(), alone.plan)
    assert leaf.grad[1].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    check(torch.rand(1, 15, 16).to(dtype), iterations=2)


def test_strides():
    cost = torch.rand(4, 6, 3, 2)[..., 0].permute(2, 0, 1)
    same = kd.sinkhorn(cost.contiguous().to(DEVICE), iterations=2, backend="triton", return_plan=True)
    other = kd.sinkhorn(cost.to(DEVICE), iterations=2, backend="triton", return_plan=True)
    assert torch.equal(same.plan, other.plan)


@pytest.mark.parametrize("shape", [(0, 3, 4), (2, 0, 4), (2, 3, 0), (1, 1, 1)])
@pytest.mark.usefixtures("nan_in_fresh_memory")
def test_small_sizes(shape):
    check(torch.rand(shape), iterations=2)


@pytest.mark.usefixtures("nan_in_fresh_memory")
def test_no_mass_at_all():
    cost, a, b = random_problem(3, 4, 2, torch.float32)
    a[0], b[1] = 0, 0
    check(cost, a, b, iterations=2, tol=1e-3)


def test_warm_start():
    cost, a, b = random_problem(14, 15, 1, torch.float32)
    start = torch.randn(1, 15)
    start[0, 1] = -math.inf
    init = torch.zeros(1, 14), start
    found = [
        kd.sinkhorn(*(x.to(DEVICE) for x in (cost, a, b)), init=tuple(x.to(DEVICE) for x in init), iterations=2,
                    backend="triton"),
        kd.sinkhorn(*(x.double() for x in (cost, a, b)), init=tuple(x.double() for x in init), iterations=2,
                    backend="reference"),
        kd.sinkhorn(cost, a, b, init=init, iterations=2, backend="reference"),
    ]  # fmt: skip
    for name in ("value", "f", "g"):
        assert_within_budget(*(getattr(x, name).cpu() for x in found), name)


def test_deterministic():
    cost, a, b = random_problem(5, 6, 1, torch.float32)
    weights = torch.ones(1), torch.rand(1, 5, 6)
    once, again = (solve(cost, a, b, weights, torch.float32, "triton", eps=1e-2, iterations=3)[0] for _ in range(2))
    assert all(torch.equal(once[k], again[k]) for k in once)


@pytest.mark.parametrize("iterations", [1, 4])
def test_shifting_a_row_shifts_the_value_by_its_mass(iterations):
    """sum_j dL/dC_ij = (P 1)_i after any number of iterations: the first takes a shift of a row's costs up."""
    cost = torch.rand(1, 5, 6, device=DEVICE).requires_grad_()
    result = kd.sinkhorn(cost, eps=0.05, iterations=iterations, backend="triton", return_plan=True)
    result.value.sum().backward()
    torch.testing.assert_close(cost.grad.sum(2), result.plan.detach().sum(2), rtol=1e-5, atol=1e-5)


def test_opcheck():
    cost, a, b = (x.to(DEVICE) for x in random_problem(3, 4, 2, torch.float32))
    eps = torch.full((2,), 0.1, dtype=torch.float64, device=DEVICE)
    arguments = cost, a, b, eps, None, None, 2, -1.0, "transport", True, True, "triton"
    torch.library.opcheck(ops.sinkhorn, arguments, test_utils=CHECKS)
    *_, run, _, history, offsets = ops.sinkhorn(*arguments)
    torch.library.opcheck(
        ops.sinkhorn_backward,
        (torch.ones(2, device=DEVICE), None, *arguments[:5], run, history, offsets, "transport", [True] * 3, "triton"),
        test_utils=CHECKS,
    )
