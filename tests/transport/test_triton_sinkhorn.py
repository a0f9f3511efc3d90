"""The Triton kernels of Sinkhorn iterations against float64 autograd through the logarithmic form.

Triton's interpreter takes a hundredth of a second for a tile and iteration: problems and iterations are few.
"""

import math

import pytest
import torch
from torch import Tensor

import kd_kernels as kd
from kd_kernels import ops
from kd_kernels.testing.budget import assert_within_budget

pytest.importorskip("triton")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def masses(*shape: int) -> Tensor:
    return torch.rand(*shape) + 0.2


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


def check(cost, a=None, b=None, *, plan=False, accurate=(), **options):
    """Twice the error of eager float32, from the very numbers the tensors hold.

    accurate: what eager has no digits of, and is held to the rounding of its own size.
    """
    weights = torch.rand(cost.shape[:-2]) + 0.5, torch.rand(cost.shape) * plan
    actual, iterations = solve(cost, a, b, weights, cost.dtype, "triton", **options)
    truth, expected = solve(cost, a, b, weights, torch.float64, "reference", **options)
    eager, _ = solve(cost, a, b, weights, torch.float32, "reference", **options)
    assert torch.equal(iterations, expected)
    for name, x in actual.items():
        # Of the largest mass that comes in: an error is a difference of two numbers of that size.
        size = 1.0 if name == "error" else 0.0
        if name in accurate:
            assert (x.double() - truth[name]).abs().max() <= 1e-5 * truth[name].abs().max(), name
        else:
            precision = eager[name] if x.dtype == torch.float32 else eager[name].to(x.dtype)
            assert_within_budget(x, truth[name], precision, name, size)


@pytest.mark.parametrize("value", ["transport", "entropic"])
@pytest.mark.parametrize("order", ["rows_first", "columns_first"])
def test_value_and_gradients(value, order):
    check(torch.rand(2, 5, 7), masses(2, 5), masses(2, 7), plan=True, value=value, order=order, iterations=4)


def test_without_masses():
    check(torch.rand(1, 7, 4), iterations=4)


@pytest.mark.parametrize(("eps", "iterations"), [(0.01, 8), (1e-3, 12), (10.0, 2)])
def test_eps(eps, iterations):
    check(torch.rand(1, 6, 5) * 2, masses(1, 6), masses(1, 5), eps=eps, iterations=iterations)


def test_eps_of_each_problem():
    check(torch.rand(3, 4, 4), masses(3, 4), masses(3, 4), eps=torch.tensor([1e-3, 0.1, 5.0]), iterations=3)


@pytest.mark.parametrize("shape", [(70, 130), (64, 65), (1, 66), (130, 1)])
def test_several_tiles(shape):
    check(torch.rand(1, *shape), masses(1, shape[0]), masses(1, shape[1]), eps=0.02, iterations=2)


@pytest.mark.parametrize("iterations", [1, 2, 5])
def test_a_column_out_of_reach(iterations):
    """No row would come near it: it has the frame of the columns to thank for any digits, which eager has not."""
    cost = torch.rand(2, 5, 6)
    cost[:, :, 3] += 200
    check(cost, masses(2, 5), masses(2, 6), eps=1e-2, iterations=iterations, accurate=("dcost", "da", "db"))


def test_a_row_far_away():
    cost = torch.rand(1, 5, 6)
    cost[:, 2] += 50
    check(cost, masses(1, 5), masses(1, 6), eps=1e-2, iterations=4)


def test_absorption():
    """Scalings cross 2^28, time and again: a cost whose best assignment takes long to find."""
    n = 6
    cost = (torch.arange(n)[:, None] - torch.arange(n)[None, :]).abs().float() ** 0.5 + 0.1 * torch.rand(1, n, n)
    a, b = masses(1, n), masses(1, n)
    a[:, 0], b[:, -1] = 9.0, 9.0
    weights = torch.ones(1), torch.zeros(1, n, n)
    _, frames = scalings_and_frames(cost, a, b, 2e-3, 25)
    assert not torch.equal(frames[:, 1], frames[:, 2])
    actual, _ = solve(cost, a, b, weights, torch.float32, "triton", eps=2e-3, iterations=25)
    truth, _ = solve(cost, a, b, weights, torch.float64, "reference", eps=2e-3, iterations=25)
    for name in ("value", "dcost", "da", "db"):
        size = truth[name].abs().max()
        assert (actual[name].double() - truth[name]).abs().max() <= 1e-5 * size, name


def scalings_and_frames(cost, a, b, eps, iterations):
    eps = torch.full((cost.shape[0],), eps, dtype=torch.float64, device=DEVICE)
    a, b = (None if x is None else x.to(DEVICE) for x in (a, b))
    *_, history, offsets = ops.sinkhorn(
        cost.to(DEVICE), a, b, eps, None, None, iterations, -1.0, "transport", False, True, "triton"
    )
    return history.cpu(), offsets.cpu()


def test_history_is_that_of_the_iterations():
    cost, a, b = torch.rand(1, 3, 4), masses(1, 3), masses(1, 4)
    history, offsets = scalings_and_frames(cost, a, b, 0.3, 2)
    kernel = ((offsets[0, 0, :3, None] + offsets[0, 0, None, 3:] - cost[0].double()) / 0.3).exp()
    y = torch.ones(4, dtype=torch.float64)
    for t in range(2):
        rho = 1 / (kernel @ y)
        sigma = 1 / (kernel.T @ (a[0] * rho))
        y = b[0] * sigma
        torch.testing.assert_close(history[0, t].double(), torch.cat([rho, sigma]), rtol=1e-6, atol=0)


def test_tolerance():
    cost, a = torch.rand(3, 5, 6), masses(3, 5)
    b = masses(3, 6)
    b *= (a.sum(1) / b.sum(1))[:, None]
    check(cost, a, b, tol=3e-2, iterations=12)
    cost[1] *= 0
    result = kd.sinkhorn(*(x.to(DEVICE) for x in (cost, a, b)), tol=3e-2, iterations=12, backend="triton")
    assert result.iterations[1] == 1
    assert (result.marginal_error <= 3e-2).all()


def test_padding_changes_no_bit():
    n, m = 70, 9
    cost, a, b = torch.rand(1, 3, 5), masses(1, 3), masses(1, 5)
    padded = torch.full((1, n, m), math.nan)
    padded[:, :3, :5] = cost
    padded_a, padded_b = torch.full((1, n), 2.0), torch.full((1, m), 3.0)
    padded_a[:, :3], padded_b[:, :5] = a, b
    weights = torch.ones(1), torch.zeros(1, 3, 5)
    options = {"eps": 1e-2, "iterations": 3, "value": "entropic"}
    alone, _ = solve(cost, a, b, weights, torch.float32, "triton", **options)
    lengths = torch.tensor([[3]]).expand(1, 1).reshape(1), torch.tensor([5])
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
    cost, a, b = torch.rand(2, 4, 5), masses(2, 4), masses(2, 5)
    kept = torch.tensor([0, 2, 3]), torch.tensor([0, 1, 2, 4])
    small, _ = solve(
        cost[:, kept[0]][:, :, kept[1]], a[:, kept[0]], b[:, kept[1]], (torch.ones(2), torch.zeros(2, 3, 4)),
        torch.float32, "triton", iterations=3,
    )  # fmt: skip
    a[:, 1], b[:, 3] = 0, 0
    cost[:, 1], cost[:, :, 3] = math.nan, math.nan
    whole, _ = solve(cost, a, b, (torch.ones(2), torch.zeros(2, 4, 5)), torch.float32, "triton", iterations=3)
    torch.testing.assert_close(whole["value"], small["value"], rtol=1e-6, atol=0)
    torch.testing.assert_close(whole["dcost"][:, kept[0]][:, :, kept[1]], small["dcost"], rtol=1e-5, atol=1e-7)
    for name, dead in (("plan", 0), ("dcost", 0)):
        assert (whole[name][:, 1] == dead).all()
        assert (whole[name][:, :, 3] == dead).all()
    assert (whole["f"][:, 1] == -math.inf).all()
    assert (whole["g"][:, 3] == -math.inf).all()
    assert (whole["da"][:, 1] == 0).all()
    assert (whole["db"][:, 3] == 0).all()


def test_forbidden_pairs():
    cost = torch.rand(2, 4, 5)
    cost[0, 1, 2], cost[0, 3, :4] = math.inf, math.inf
    check(cost, masses(2, 4), masses(2, 5), iterations=3)
    cost[1, 2] = math.inf  # a row with nowhere to go
    check(cost, masses(2, 4), masses(2, 5), iterations=3)
    cost[1, :, 3] = math.inf
    check(cost, masses(2, 4), masses(2, 5), value="entropic", iterations=3)


@pytest.mark.parametrize("bad", [math.nan, -math.inf])
def test_bad_costs_stay_in_their_problem(bad):
    cost = torch.rand(2, 3, 4)
    cost[0, 1, 2] = bad
    leaf = cost.to(DEVICE).requires_grad_()
    result = kd.sinkhorn(leaf, iterations=3, backend="triton", return_plan=True)
    result.value[1].backward()
    alone = kd.sinkhorn(cost[1:].to(DEVICE), iterations=3, backend="triton", return_plan=True)
    assert result.value[0].isnan()
    assert result.plan[0].isnan().all()
    assert torch.equal(result.value[1:].detach(), alone.value)
    assert torch.equal(result.plan[1:].detach(), alone.plan)
    assert leaf.grad[1].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    check(torch.rand(1, 5, 6).to(dtype), iterations=3)


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
    cost, nothing = torch.rand(2, 3, 4), torch.zeros(2, 3)
    check(cost, nothing, masses(2, 4), iterations=2, tol=1e-3)
    check(cost, masses(2, 3), torch.zeros(2, 4), iterations=2)


def test_warm_start():
    cost, a, b = (x.to(DEVICE) for x in (torch.rand(2, 4, 5), masses(2, 4), masses(2, 5)))
    start = torch.randn(2, 5, device=DEVICE)
    start[0, 1] = -math.inf
    init = torch.zeros(2, 4, device=DEVICE), start
    actual = kd.sinkhorn(cost, a, b, init=init, iterations=2, backend="triton")
    expected = kd.sinkhorn(
        cost.double(), a.double(), b.double(), init=tuple(x.double() for x in init), iterations=2, backend="reference"
    )
    torch.testing.assert_close(actual.value.double(), expected.value, rtol=1e-6, atol=0)
    torch.testing.assert_close(actual.f.double(), expected.f, rtol=1e-6, atol=1e-6)


def test_deterministic():
    cost, a, b = torch.rand(2, 5, 6), masses(2, 5), masses(2, 6)
    weights = torch.ones(2), torch.rand(2, 5, 6)
    once, again = (solve(cost, a, b, weights, torch.float32, "triton", eps=1e-2, iterations=3)[0] for _ in range(2))
    assert all(torch.equal(once[k], again[k]) for k in once)


@pytest.mark.parametrize("iterations", [1, 4])
def test_shifting_a_row_shifts_the_value_by_its_mass(iterations):
    """sum_j dL/dC_ij = (P 1)_i after any number of iterations: the first takes a shift of a row's costs up."""
    cost = torch.rand(1, 5, 6, device=DEVICE).requires_grad_()
    result = kd.sinkhorn(cost, eps=0.05, iterations=iterations, backend="triton", return_plan=True)
    result.value.sum().backward()
    torch.testing.assert_close(cost.grad.sum(2), result.plan.detach().sum(2), rtol=1e-5, atol=1e-5)
