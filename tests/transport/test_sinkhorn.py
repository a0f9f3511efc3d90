"""Sinkhorn iterations against plain normalisation under autograd, laws that hold for every problem, and edges."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from problems import gradients, leaves, plain_iterations, random_problem

import kd_kernels as kd
from kd_kernels.testing.budget import assert_within_budget

BACKENDS = ["cpu", "reference"]
each_backend = pytest.mark.parametrize("backend", BACKENDS)
each_value = pytest.mark.parametrize("value", ["transport", "entropic"])
INF, NAN = math.inf, math.nan


def entropic(plan, cost, eps):
    return (plan * cost).sum((1, 2)) + eps * (plan * (plan.log() - 1)).sum((1, 2))


class TestAgainstPlainNormalisation:
    """In float64, where it loses nothing for moderate eps."""

    @each_backend
    @each_value
    @pytest.mark.parametrize("iterations", [1, 3, 20])
    @pytest.mark.parametrize(("n", "m"), [(1, 1), (4, 3), (9, 17), (40, 33)])
    def test_value_and_gradients(self, backend, value, iterations, n, m):
        cost, a, b = random_problem(n, m)
        upstream, of_plan = torch.tensor([0.7, -1.3]).double(), torch.randn(2, n, m).double()
        mine, truth = leaves(cost, a, b), leaves(cost, a, b)
        result = kd.sinkhorn(*mine, eps=0.15, iterations=iterations, value=value, return_plan=True, backend=backend)
        plan = plain_iterations(*truth, 0.15, iterations)
        total = (plan * truth[0]).sum((1, 2)) if value == "transport" else entropic(plan, truth[0], 0.15)
        torch.testing.assert_close(result.value, total, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(result.plan, plan, rtol=1e-10, atol=1e-14)
        error = (plan.sum(2) - truth[1]).abs().sum(1) / truth[1].sum(1)
        torch.testing.assert_close(result.marginal_error, error, rtol=1e-6, atol=1e-14)
        mine_loss = (result.value * upstream).sum() + (result.plan * of_plan).sum()
        loss = (total * upstream).sum() + (plan * of_plan).sum()
        for x, y in zip(gradients(mine_loss, mine), gradients(loss, truth), strict=True):
            torch.testing.assert_close(x, y, rtol=1e-10, atol=1e-10)

    @each_backend
    def test_columns_first_is_the_transposed_problem(self, backend):
        cost, a, b = random_problem(7, 5)
        mine, truth = leaves(cost, a, b), leaves(cost, a, b)
        result = kd.sinkhorn(*mine, iterations=3, order="columns_first", return_plan=True, backend=backend)
        plan = plain_iterations(truth[0].mT, truth[2], truth[1], 0.1, 3).mT
        torch.testing.assert_close(result.plan, plan, rtol=1e-10, atol=1e-14)
        torch.testing.assert_close(result.plan.sum(2), a, rtol=1e-12, atol=1e-14)
        for x, y in zip(
            gradients(result.value.sum(), mine), gradients((plan * truth[0]).sum(), truth), strict=True
        ):  # fmt: skip
            torch.testing.assert_close(x, y, rtol=1e-10, atol=1e-10)

    def test_the_plan_of_sinkd(self):
        """Masses of ones, rows then columns, as SinKD's authors wrote it."""
        cost = torch.rand(3, 3).double() * 2
        plan = (-cost / 0.1).exp()
        for _ in range(20):
            plan = plan / plan.sum(1, keepdim=True)
            plan = plan / plan.sum(0, keepdim=True)
        result = kd.sinkhorn(cost, return_plan=True)
        torch.testing.assert_close(result.plan, plan, rtol=1e-11, atol=1e-14)
        assert result.value.shape == ()

    def test_gradcheck(self):
        cost, a, b = leaves(*random_problem(3, 4))
        assert torch.autograd.gradcheck(lambda *x: kd.sinkhorn(*x, eps=0.3, iterations=4).value, (cost, a, b))


class TestAccuracy:
    """Within twice the error of eager float32 iterations in the logarithmic domain."""

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
    @pytest.mark.parametrize("eps", [1.0, 0.1, 1e-2, 1e-3])
    @pytest.mark.parametrize("far", [False, True], ids=["near", "far"])
    def test_value_and_gradients(self, dtype, eps, far):
        cost, a, b = random_problem(21, 37, 3, dtype)
        if far:
            cost[:, :, 5] += 6  # no row prefers this column: it would underflow in the frame of the row minima
        options = {"eps": eps, "iterations": 25}
        mine, truth, eager = leaves(cost, a, b), leaves(*(x.double() for x in (cost, a, b))), leaves(cost.float(), a, b)
        results = [
            kd.sinkhorn(*mine, backend="cpu", **options),
            kd.sinkhorn(*truth, backend="reference", **options),
            kd.sinkhorn(*eager, backend="reference", **options),
        ]
        for name in ("value", "f", "g", "marginal_error"):
            assert_within_budget(*(getattr(r, name) for r in results), name)
        found = [gradients(r.value.sum(), x) for r, x in zip(results, (mine, truth, eager), strict=True)]
        for name, *x in zip("cab", *found, strict=True):
            if name == "c" and dtype != torch.float32:
                x[2] = x[2].to(dtype)  # the gradient itself is rounded
            assert_within_budget(*x, f"gradient of {name}")

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_many_new_offsets(self, dtype):
        """eps so small that the scalings drift by thousands of eps over the iterations."""
        cost, a, b = random_problem(12, 12, 3, dtype)
        mine, truth, eager = leaves(cost), leaves(cost.double()), leaves(cost)
        options = {"eps": 1e-3, "iterations": 300, "value": "transport"}
        results = [
            kd.sinkhorn(mine[0], a, b, **options),
            kd.sinkhorn(truth[0], a.double(), b.double(), backend="reference", **options),
            kd.sinkhorn(eager[0], a, b, backend="reference", **options),
        ]
        start = kd.sinkhorn(cost, a, b, eps=1e-3, iterations=1)
        drift = (results[1].f / 1e-3).abs().max() - (start.f / 1e-3).abs().max()
        assert drift.abs() > 20  # the test is what it says
        found = [gradients(r.value.sum(), x)[0] for r, x in zip(results, (mine, truth, eager), strict=True)]
        if dtype == torch.float64:  # there is no truth beside it
            torch.testing.assert_close(results[0].value, results[1].value, rtol=1e-11, atol=0)
            torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-9 * found[1].abs().max().item())
        else:
            assert_within_budget(*(r.value for r in results), "value")
            assert_within_budget(*found, "gradient")

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_a_column_forbidden_to_all_beside_scalings_of_one(self, dtype):
        """Frame B then has the offsets of frame A; the reverse pass cannot tell them apart, and need not."""
        cost = torch.tensor([[[1.0, 3.0, INF], [3.0, 2.0, INF], [1.5, 3.0, INF]]], dtype=dtype)
        a = torch.tensor([[0.5, 1.5, 0.25]], dtype=dtype)
        found = []
        for x, backend in ((leaves(cost, a), "cpu"), (leaves(cost.double(), a.double()), "reference")):
            found.append(gradients(kd.sinkhorn(*x, eps=0.01, iterations=2, backend=backend).value.sum(), x))
        for x, y in zip(*found, strict=True):
            torch.testing.assert_close(x.double(), y, rtol=0, atol=1e-4)

    def test_costs_far_from_zero(self):
        """The same plan when a constant is added to every cost, though float32 potentials hold few digits of it."""
        cost = (torch.rand(2, 8, 8) * 64).round() / 64
        options = {"eps": 0.01, "iterations": 10, "return_plan": True}
        near, far = (kd.sinkhorn(cost + shift, "uniform", "uniform", **options).plan for shift in (0, 4096))
        torch.testing.assert_close(near, far, rtol=1e-5, atol=1e-9)


class TestLaws:
    @given(
        st.integers(1, 20), st.integers(1, 20), st.integers(1, 30), st.sampled_from([0.01, 0.1, 1.0]),
        st.integers(0, 2**31),
    )  # fmt: skip
    def test_row_sums_of_the_gradient_are_those_of_the_plan(self, n, m, iterations, eps, seed):
        """What is added to a row of costs is absorbed by its potential, after any number of iterations."""
        torch.manual_seed(seed)
        cost, a, b = random_problem(n, m)
        (leaf,) = leaves(cost)
        result = kd.sinkhorn(leaf, a, b, eps=eps, iterations=iterations, return_plan=True)
        (gradient,) = gradients(result.value.sum(), [leaf])
        size = gradient.abs().sum(2).max().item()
        torch.testing.assert_close(gradient.sum(2), result.plan.detach().sum(2), rtol=0, atol=1e-13 * (1 + size / eps))

    @given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 2**31))
    def test_permutations_and_scale(self, n, m, seed):
        torch.manual_seed(seed)
        cost, a, b = random_problem(n, m)
        rows, columns = torch.randperm(n), torch.randperm(m)
        result = kd.sinkhorn(cost, a, b, return_plan=True)
        permuted = kd.sinkhorn(cost[:, rows][:, :, columns], a[:, rows], b[:, columns], return_plan=True)
        torch.testing.assert_close(permuted.plan, result.plan[:, rows][:, :, columns], rtol=1e-10, atol=1e-15)
        scaled = kd.sinkhorn(8 * cost, a, b, eps=0.8)
        torch.testing.assert_close(scaled.value, 8 * result.value, rtol=1e-10, atol=1e-13)

    def test_columns_are_met_exactly_and_rows_as_reported(self):
        cost, a, b = random_problem(30, 20, 4, torch.float32)
        result = kd.sinkhorn(cost, a, b, eps=0.05, return_plan=True)
        torch.testing.assert_close(result.plan.sum(1), b, rtol=1e-5, atol=0)
        error = (result.plan.sum(2) - a).abs().sum(1) / a.sum(1)
        torch.testing.assert_close(result.marginal_error, error, rtol=1e-3, atol=1e-6)

    def test_small_eps_is_the_unregularised_problem(self):
        from scipy.optimize import linprog

        cost, a, b = random_problem(5, 4, 1)
        rows = torch.kron(torch.eye(5), torch.ones(1, 4))
        columns = torch.kron(torch.ones(1, 5), torch.eye(4))
        met = torch.cat([rows, columns]).numpy()
        exact = linprog(cost.flatten().numpy(), A_eq=met, b_eq=torch.cat([a[0], b[0]]).numpy()).fun
        for eps, slack in ((0.1, 0.1), (1e-3, 1e-3)):
            result = kd.sinkhorn(cost, a, b, eps=eps, iterations=20_000, tol=1e-9)
            misplaced = 2 * result.marginal_error.item()  # mass times the largest cost
            assert exact - misplaced - 1e-9 <= result.value.item() <= exact + slack

    def test_no_cost_gives_the_product_of_the_marginals(self):
        _, a, b = random_problem(4, 6)
        plan = kd.sinkhorn(torch.zeros(2, 4, 6).double(), a, b, iterations=2, return_plan=True).plan
        torch.testing.assert_close(plan, a[:, :, None] * b[:, None, :], rtol=1e-13, atol=0)


class TestStopping:
    @each_backend
    def test_every_problem_stops_for_itself(self, backend):
        cost, a, b = random_problem(8, 8, 5)
        eps = torch.logspace(-0.8, 0, 5).double()
        result = kd.sinkhorn(cost, a, b, eps=eps, iterations=500, tol=1e-6, backend=backend)
        assert len(set(result.iterations.tolist())) > 3
        assert (result.marginal_error <= 1e-6).all()
        for i, t in enumerate(result.iterations.tolist()):
            mine, fixed = leaves(cost[i]), leaves(cost[i])
            stopped = kd.sinkhorn(
                mine[0], a[i], b[i], eps=eps[i].item(), iterations=500, tol=1e-6, backend=backend
            )  # fmt: skip
            same = kd.sinkhorn(fixed[0], a[i], b[i], eps=eps[i].item(), iterations=t, backend=backend)
            torch.testing.assert_close(stopped.value, same.value, rtol=1e-11, atol=1e-14)
            torch.testing.assert_close(stopped.value, result.value[i], rtol=0, atol=0)
            torch.testing.assert_close(
                *(gradients(r.value, x)[0] for r, x in ((stopped, mine), (same, fixed))), rtol=1e-8, atol=1e-11
            )
            if t > 1:
                before = kd.sinkhorn(cost[i], a[i], b[i], eps=eps[i].item(), iterations=t - 1, backend=backend)
                assert before.marginal_error > 1e-6

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_stopping_just_after_new_offsets(self, dtype):
        """The reverse pass must know whether the last scalings are in the offsets: every stopping point of a run that
        takes new offsets several times."""
        cost, a, b = random_problem(6, 6, 1, torch.float64)
        cost, a, b = cost.to(dtype), a.to(dtype), b.to(dtype)
        errors = [kd.sinkhorn(cost, a, b, eps=2e-3, iterations=t).marginal_error.item() for t in range(1, 60)]
        for t in range(1, 59):
            if errors[t] >= 0.99 * min(errors[:t]):
                continue  # no tolerance stops here for certain
            mine, fixed = leaves(cost), leaves(cost)
            tol = (errors[t] + min(errors[:t])) / 2
            stopped = kd.sinkhorn(mine[0], a, b, eps=2e-3, iterations=60, tol=tol)
            assert stopped.iterations.item() == t + 1
            same = kd.sinkhorn(fixed[0], a, b, eps=2e-3, iterations=t + 1)
            x, y = (gradients(r.value.sum(), z)[0] for r, z in ((stopped, mine), (same, fixed)))
            slack = 1e-3 if dtype == torch.float32 else 1e-9
            torch.testing.assert_close(x, y, rtol=slack, atol=slack * y.abs().max().item())

    @each_backend
    @pytest.mark.parametrize("order", ["rows_first", "columns_first"])
    def test_going_on_from_potentials(self, backend, order):
        cost, a, b = random_problem(6, 9)
        a[0, 2] = b[1, 3] = 0
        options = {"order": order, "eps": 0.05, "backend": backend}
        whole = kd.sinkhorn(cost, a, b, iterations=7, **options)
        first = kd.sinkhorn(cost, a, b, iterations=3, **options)
        for init in (first, (first.f, first.g)):
            rest = kd.sinkhorn(cost, a, b, iterations=4, init=init, **options)
            torch.testing.assert_close(rest.value, whole.value, rtol=1e-11, atol=0)
            torch.testing.assert_close(rest.f, whole.f, rtol=1e-11, atol=1e-12)


class TestGradientModes:
    @each_backend
    @each_value
    def test_implicit_is_the_limit_of_unrolled(self, backend, value):
        cost, a, b = random_problem(6, 8)
        of_plan = torch.randn(2, 6, 8).double()
        found = []
        for grad in ("implicit", "unrolled"):
            x = leaves(cost, a, b)
            result = kd.sinkhorn(
                *x, eps=0.3, iterations=400, value=value, grad=grad, return_plan=True, backend=backend
            )  # fmt: skip
            found.append(gradients(result.value.sum() + (result.plan * of_plan).sum(), x))
        torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-8, atol=1e-11)
        # Masses can only move between entries of a marginal: what is added to all of a and taken from b is no gradient.
        for x, y in zip(found[0][1:], found[1][1:], strict=True):
            torch.testing.assert_close(x - x.mean(1, True), y - y.mean(1, True), rtol=1e-8, atol=1e-10)

    @each_backend
    def test_envelope_and_detached(self, backend):
        cost, a, b = random_problem(5, 7)
        x = leaves(cost, a, b)
        result = kd.sinkhorn(
            *x, eps=0.3, iterations=400, value="entropic", grad="envelope", return_plan=True, backend=backend
        )  # fmt: skip
        assert not result.plan.requires_grad
        of_cost, of_a, of_b = gradients(result.value.sum(), x)
        torch.testing.assert_close(of_cost, result.plan, rtol=1e-13, atol=0)
        torch.testing.assert_close(of_a, result.f, rtol=1e-13, atol=0)
        torch.testing.assert_close(of_b, result.g, rtol=1e-13, atol=0)
        x = leaves(cost, a, b)
        result = kd.sinkhorn(*x, grad="detached", return_plan=True, backend=backend)
        of_cost, of_a = torch.autograd.grad(result.value.sum(), x[:2], allow_unused=True)
        torch.testing.assert_close(of_cost, result.plan, rtol=1e-13, atol=0)
        assert of_a is None

    def test_the_envelope_of_the_sharp_value_is_refused(self):
        with pytest.raises(ValueError, match="envelope"):
            kd.sinkhorn(torch.rand(2, 2, requires_grad=True), grad="envelope")

    def test_potentials_carry_no_gradient(self):
        result = kd.sinkhorn(torch.rand(2, 3, requires_grad=True), return_plan=True)
        assert result.value.requires_grad
        assert result.plan.requires_grad
        assert not any(x.requires_grad for x in (result.f, result.g, result.marginal_error))

    def test_implicit_in_float32(self):
        cost, a, b = random_problem(20, 30, 3, torch.float32)
        mine, truth = leaves(cost), leaves(cost.double())
        options = {"eps": 0.2, "iterations": 500, "grad": "implicit"}
        x = gradients(kd.sinkhorn(mine[0], a, b, tol=1e-6, **options).value.sum(), mine)[0]
        y = gradients(kd.sinkhorn(truth[0], a.double(), b.double(), **options).value.sum(), truth)[0]
        torch.testing.assert_close(x.double(), y, rtol=1e-3, atol=1e-4 * y.abs().max().item())

    def test_second_derivatives_are_refused(self):
        (leaf,) = leaves(torch.rand(3, 3).double())
        (first,) = torch.autograd.grad(kd.sinkhorn(leaf).value, leaf, create_graph=True)
        with pytest.raises(RuntimeError):
            first.sum().backward()

    def test_second_derivatives_of_the_reference(self):
        cost = torch.rand(2, 2).double().requires_grad_()
        assert torch.autograd.gradgradcheck(
            lambda c: kd.sinkhorn(c, eps=0.5, iterations=3, backend="reference").value, (cost,)
        )


class TestRagged:
    def lengths(self):
        return torch.tensor([11, 4, 1, 0]), torch.tensor([7, 7, 3, 5])

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
    @pytest.mark.parametrize("grad", ["unrolled", "implicit"])
    def test_equal_bit_for_bit_to_the_problem_itself(self, dtype, grad, nan_in_fresh_memory):
        rows, columns = self.lengths()
        cost, a, b = random_problem(11, 7, 4, dtype)
        for i, (n, m) in enumerate(zip(rows, columns, strict=True)):
            cost[i, n:], cost[i, :, m:], a[i, n:], b[i, m:] = NAN, NAN, 0.3, 0.3
        x = leaves(cost, a, b)
        result = kd.sinkhorn(*x, lengths=(rows, columns), grad=grad, return_plan=True)
        found = gradients(result.value.sum(), x)
        assert all(g.isfinite().all() for g in found)
        for i, (n, m) in enumerate(zip(rows.tolist(), columns.tolist(), strict=True)):
            y = leaves(cost[i, :n, :m], a[i, :n], b[i, :m])
            alone = kd.sinkhorn(*y, grad=grad, return_plan=True)
            assert torch.equal(result.value[i], alone.value)
            assert torch.equal(result.plan[i, :n, :m], alone.plan)
            assert torch.equal(result.f[i, :n], alone.f)
            assert torch.equal(result.g[i, :m], alone.g)
            assert (result.plan[i, n:] == 0).all()
            assert (result.plan[i, :, m:] == 0).all()
            assert (result.f[i, n:] == -INF).all()
            assert (result.g[i, m:] == -INF).all()
            if grad == "implicit":  # solved together: as many steps of conjugate gradients as the slowest needs
                compare = lambda s, t: torch.testing.assert_close(s, t, rtol=1e-4, atol=1e-5)  # noqa: E731
            else:
                compare = lambda s, t: torch.equal(s, t) or pytest.fail("other bits")  # noqa: E731
            for whole, part in zip(
                (found[0][i, :n, :m], found[1][i, :n], found[2][i, :m]), gradients(alone.value, y), strict=True
            ):
                compare(whole, part)
            assert (found[0][i, n:] == 0).all()
            assert (found[0][i, :, m:] == 0).all()

    def test_like_the_reference(self):
        rows, columns = self.lengths()
        cost, _, _ = random_problem(11, 7, 4)
        for options in ({}, {"order": "columns_first"}, {"a": "uniform", "b": "uniform"}, {"value": "entropic"}):
            found = []
            for backend in BACKENDS:
                (x,) = leaves(cost)
                result = kd.sinkhorn(x, lengths=(rows, columns), backend=backend, **options)
                found.append((result.value, gradients(result.value.sum(), [x])[0]))
            for x, y in zip(*found, strict=True):
                torch.testing.assert_close(x, y, rtol=1e-10, atol=1e-12)

    def test_one_tensor_for_both_sides_and_numbers(self):
        cost = torch.rand(2, 5, 5)
        lengths = torch.tensor([5, 3])
        both = kd.sinkhorn(cost, lengths=lengths).value
        assert torch.equal(both, kd.sinkhorn(cost, lengths=(lengths, lengths)).value)
        assert torch.equal(both[1], kd.sinkhorn(cost[1], lengths=3).value)


class TestEdges:
    @each_backend
    def test_entries_without_mass_are_as_if_removed(self, backend):
        cost, a, b = random_problem(9, 8)
        rows, columns = torch.arange(9) != 4, torch.arange(8) != 2
        a[:, ~rows] = b[:, ~columns] = 0
        cost[:, ~rows] = NAN
        cost[:, :, ~columns] = INF
        x, y = leaves(cost, a, b), leaves(cost[:, rows][:, :, columns], a[:, rows], b[:, columns])
        whole = kd.sinkhorn(*x, iterations=4, backend=backend)
        part = kd.sinkhorn(*y, iterations=4, backend=backend)
        torch.testing.assert_close(whole.value, part.value, rtol=1e-13, atol=0)
        of_whole, of_part = gradients(whole.value.sum(), x), gradients(part.value.sum(), y)
        torch.testing.assert_close(of_whole[0][:, rows][:, :, columns], of_part[0], rtol=1e-10, atol=1e-13)
        torch.testing.assert_close(of_whole[1][:, rows], of_part[1], rtol=1e-10, atol=1e-13)
        assert (of_whole[0][:, ~rows] == 0).all()
        assert (of_whole[0][:, :, ~columns] == 0).all()
        assert (of_whole[1][:, ~rows] == 0).all()
        assert (of_whole[2][:, ~columns] == 0).all()
        assert (whole.f[:, ~rows] == -INF).all()

    @each_backend
    @each_value
    def test_forbidden_pairs(self, backend, value):
        cost, a, b = random_problem(5, 6)
        cost[0, 1, 2] = cost[1, :4, 3] = INF
        finite = cost.isfinite()
        x, y = leaves(cost, a, b), leaves(torch.where(finite, cost, 50.0), a, b)
        options = {"eps": 0.05, "value": value, "return_plan": True}
        forbidden = kd.sinkhorn(*x, backend=backend, **options)
        dear = kd.sinkhorn(*y, backend="reference", **options)
        torch.testing.assert_close(forbidden.value, dear.value, rtol=1e-9, atol=0)
        assert (forbidden.plan[~finite] == 0).all()
        for s, t in zip(gradients(forbidden.value.sum(), x), gradients(dear.value.sum(), y), strict=True):
            torch.testing.assert_close(s, t, rtol=1e-8, atol=1e-10)

    @each_backend
    def test_a_row_that_may_go_nowhere(self, backend):
        cost, a, b = random_problem(4, 4)
        cost[0, 1] = cost[1, :, 2] = INF
        x = leaves(cost, a, b)
        result = kd.sinkhorn(*x, return_plan=True, backend=backend)
        assert (result.plan[0, 1] == 0).all()
        assert (result.plan[1, :, 2] == 0).all()
        assert result.value.isfinite().all()
        assert result.marginal_error[0] >= a[0, 1] / a[0].sum()
        assert all(g.isfinite().all() for g in gradients(result.value.sum(), x))

    @each_backend
    @pytest.mark.parametrize("bad", [NAN, -INF])
    def test_a_bad_cost_stays_in_its_problem(self, backend, bad):
        cost, a, b = random_problem(4, 5, 3)
        cost[1, 2, 3] = bad
        x = leaves(cost, a, b)
        result = kd.sinkhorn(*x, backend=backend)
        assert result.value.isnan().tolist() == [False, True, False]
        (of_cost, *_) = gradients(result.value[[0, 2]].sum(), x)
        assert of_cost[[0, 2]].isfinite().all()

    @each_backend
    @pytest.mark.parametrize("shape", [(0, 3, 4), (2, 0, 4), (2, 3, 0), (0, 0), (2, 2, 1, 1), (1, 1)], ids=str)
    def test_shapes(self, backend, shape):
        (cost,) = leaves(torch.rand(shape))
        result = kd.sinkhorn(cost, return_plan=True, backend=backend)
        batch = shape[:-2]
        assert result.value.shape == result.iterations.shape == result.marginal_error.shape == batch
        assert result.plan.shape == shape
        assert result.f.shape == (*batch, shape[-2])
        assert result.g.shape == (*batch, shape[-1])
        (gradient,) = gradients(result.value.sum(), [cost])
        assert gradient.shape == shape
        assert gradient.isfinite().all()
        assert result.value.isfinite().all()

    def test_eps_for_each_problem_and_masses_for_all(self):
        cost, a, b = random_problem(4, 4, 3)
        eps = torch.tensor([0.05, 0.5, 2.0])
        together = kd.sinkhorn(cost, a[0], b[0], eps=eps).value
        for i in range(3):
            assert torch.equal(together[i], kd.sinkhorn(cost[i], a[0], b[0], eps=eps[i].item()).value)

    def test_layouts(self):
        cost = torch.rand(5, 4, 3)
        for view in (cost.mT.contiguous().mT, torch.cat([cost, cost], 2)[:, :, :3], cost[::2], cost.flip(0)):
            (x,), (y,) = leaves(view), leaves(view.contiguous())
            assert torch.equal(kd.sinkhorn(view).value, kd.sinkhorn(view.contiguous()).value)
            assert torch.equal(*(gradients(kd.sinkhorn(z).value.sum(), [z])[0] for z in (x, y)))
        expanded = cost[:1].expand(3, 4, 3)
        assert (kd.sinkhorn(expanded).value == kd.sinkhorn(cost[0]).value).all()

    def test_inputs_are_not_changed(self):
        cost, a, b = random_problem(4, 4)
        copies = [x.clone() for x in (cost, a, b)]
        x = leaves(cost, a, b)
        kd.sinkhorn(*x).value.sum().backward()
        for before, after in zip(copies, x, strict=True):
            assert torch.equal(before, after.detach())


class TestDeterminism:
    def test_bits_depend_on_nothing_but_the_problem(self):
        cost, a, b = random_problem(33, 50, 8, torch.float32)
        results, threads = [], torch.get_num_threads()
        try:
            for count in (1, 2, 3):
                torch.set_num_threads(count)
                (x,) = leaves(cost)
                result = kd.sinkhorn(x, a, b)
                results.append((result.value, gradients(result.value.sum(), [x])[0]))
        finally:
            torch.set_num_threads(threads)
        for value, gradient in results[1:]:
            assert torch.equal(value, results[0][0])
            assert torch.equal(gradient, results[0][1])
        assert torch.equal(kd.sinkhorn(cost[3:4], a[3:4], b[3:4]).value, results[0][0][3:4])


class TestMemory:
    def saved_bytes(self, iterations, n, m):
        sizes = []

        def pack(x):
            sizes.append(x.untyped_storage().nbytes())
            return x

        (cost,) = leaves(torch.rand(1, n, m))
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            kd.sinkhorn(cost, iterations=iterations)
        return sum(sizes) - cost.untyped_storage().nbytes()

    def test_what_is_kept_grows_as_iterations_times_rows_and_columns(self):
        n, m = 200, 300
        short, long = self.saved_bytes(20, n, m), self.saved_bytes(200, n, m)
        assert long - short == 180 * (n + m) * 4
        assert long < 1.2 * 200 * (n + m) * 4


class TestDebiased:
    def test_zero_for_equal_sides_and_positive_otherwise(self):
        points = torch.rand(3, 6, 2).double()
        others = torch.rand(3, 5, 2).double()
        distance = lambda x, y: torch.cdist(x, y, p=1)  # noqa: E731
        options = {"eps": 0.2, "iterations": 500}
        same = kd.sinkhorn_divergence(*(distance(points, points),) * 3, "uniform", "uniform", **options)
        torch.testing.assert_close(same, torch.zeros(3).double(), rtol=0, atol=1e-12)
        different = kd.sinkhorn_divergence(
            distance(points, others), distance(points, points), distance(others, others), "uniform", "uniform",
            **options,
        )  # fmt: skip
        assert (different > 1e-3).all()

    def test_gradient_vanishes_for_equal_sides(self):
        points = torch.rand(6, 2).double()
        x = points.clone().requires_grad_()
        cost, own, other = ((p[:, None] - q[None]).square().sum(2) for p, q in ((x, points), (x, x), (points, points)))
        loss = kd.sinkhorn_divergence(cost, own, other, "uniform", "uniform", eps=0.2, iterations=2000)
        (gradient,) = torch.autograd.grad(loss, x)
        torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-8)


class TestPeers:
    def test_pot(self):
        ot = pytest.importorskip("ot", reason="POT is not installed")
        cost, a, b = random_problem(14, 9, 3)
        mine = kd.sinkhorn(cost, a, b, eps=0.1, iterations=20000, tol=1e-13, return_plan=True)
        for i in range(3):
            plan = ot.sinkhorn(
                a[i].numpy(), b[i].numpy(), cost[i].numpy(), 0.1, method="sinkhorn_log", numItermax=20000, stopThr=1e-14
            )
            torch.testing.assert_close(mine.plan[i], torch.from_numpy(plan), rtol=0, atol=1e-8)
