"""`kd_kernels.sinkhorn`: entropic optimal transport between batches of marginals."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from kd_kernels import ops
from kd_kernels.backends import reference, select
from kd_kernels.transport import arguments
from kd_kernels.transport.result import Transport


def sinkhorn(
    cost: Tensor,
    a: Tensor | str | None = None,
    b: Tensor | str | None = None,
    *,
    eps: float | Tensor = 0.1,
    iterations: int = 20,
    tol: float | None = None,
    lengths: Tensor | Sequence[Tensor] | None = None,
    order: str = "rows_first",
    grad: str = "unrolled",
    value: str = "transport",
    init: Transport | tuple[Tensor, Tensor] | None = None,
    return_plan: bool = False,
    backend: str = "auto",
) -> Transport:
    """Entropic optimal transport by Sinkhorn iterations, many problems at once.

    With K = exp(-C / eps), an iteration scales the rows of the plan to a and then its columns to b:
    x = a / (K y), y = b / (K^T x), P_ij = x_i K_ij y_j (Cuturi 2013). The result is that of the logarithmic form for
    any eps: nothing overflows or vanishes.

    Args:
        cost: C `[..., n, m]`, float32, bfloat16, float16 or float64. +inf forbids a pair.
        a: masses of the rows `[n]` or `[..., n]`, None for ones, "uniform" for 1/n. A row without mass takes no part
            at all and is not read.
        b: masses of the columns `[m]` or `[..., m]`, likewise.
        eps: strength of the entropy, in units of the cost; a number, or a tensor `[...]` with one for each problem.
        iterations: how many; with `tol`, at most how many.
        tol: stop a problem once its `marginal_error` is no larger. Decided for each problem, on the device.
        lengths: rows and columns that each problem has, `[...]`, or a pair of such; what lies beyond is not read.
        order: "rows_first", or "columns_first", which meets the rows exactly at the end.
        grad: "unrolled" differentiates the iterations that were run, exactly; "implicit" the fixed point, which they
            have reached when `marginal_error` is small; "envelope" takes the plan as the derivative of the entropic
            value by the cost, right at the fixed point; "detached" takes the plan for a constant.
        value: "transport" is <P, C>; "entropic" is <P, C> - eps h(P) with h(P) = -sum P (log P - 1).
        init: a `Transport`, or potentials (f, g), to go on from.
        return_plan: return P too.
        backend: "auto", "cpu", "cuda", "triton" or "reference".

    Returns:
        A `Transport`. Gradients go to the cost and to tensors a and b; those of rows and columns without mass are 0.

    A row or column with mass and finite costs nowhere sends nothing, and shows in `marginal_error`. Costs that are NaN
    or -inf make the results of their own problem NaN.

    Raises:
        ValueError: a shape, range, device or name that does not fit; grad="envelope" for value="transport".
        TypeError: a dtype or type that does not fit.
        RuntimeError: a backend that is not available in this installation.
    """
    arguments.cost(cost)
    arguments.gradient(grad, value)
    arguments.choice("order", order, arguments.ORDERS)
    eps_of = arguments.regularisation(eps, cost)
    sizes = arguments.lengths(lengths, cost)
    a = arguments.marginal("a", a, cost, 0, sizes)
    b = arguments.marginal("b", b, cost, 1, sizes)
    iterations, tolerance = arguments.count("iterations", iterations), arguments.tolerance(tol)
    chosen = select.choose(backend, cost.device, (cost.dtype, cost.dtype), ("sinkhorn",))
    f, g = (init.f, init.g) if isinstance(init, Transport) else (None, None) if init is None else init
    batch = cost.shape[:-2]
    problem = cost.reshape(batch.numel(), *cost.shape[-2:])
    rows_first = order == "rows_first"
    if rows_first:
        start = arguments.start(g, "g", cost, 1)
    else:  # the same iterations of the transposed problem
        start = arguments.start(f, "f", cost, 0)
        problem, a, b = problem.transpose(1, 2), b, a
        sizes = None if sizes is None else sizes.flip(1)
    settings = Settings(iterations, tolerance, value, return_plan, chosen)
    total, f, g, plan, run, error = _solve(problem, a, b, eps_of, sizes, start, grad, settings)
    if not rows_first:
        f, g, plan = g, f, plan.transpose(1, 2) if return_plan else plan
    return Transport(
        total.reshape(batch),
        f.reshape(*batch, f.shape[1]),
        g.reshape(*batch, g.shape[1]),
        plan.reshape(cost.shape) if return_plan else None,
        run.reshape(batch),
        error.reshape(batch),
    )


def sinkhorn_divergence(
    cost: Tensor,
    row_cost: Tensor,
    column_cost: Tensor,
    a: Tensor | str | None = None,
    b: Tensor | str | None = None,
    *,
    lengths: Tensor | Sequence[Tensor] | None = None,
    **options,
) -> Tensor:
    """The debiased value OT(a, b) - (OT(a, a) + OT(b, b)) / 2, `[...]`; 0 for equal sides, where OT(a, b) is not.

    Feydy et al. 2019, "Interpolating between Optimal Transport and MMD using Sinkhorn Divergences"; OT is the entropic
    value.

    Args:
        cost: between rows and columns, `[..., n, m]`.
        row_cost: of the rows among themselves, `[..., n, n]`.
        column_cost: of the columns among themselves, `[..., m, m]`.
        a, b, lengths: as for `sinkhorn`.
        **options: of `sinkhorn`: eps, iterations, tol, order, grad, backend.
    """
    rows, columns = lengths if isinstance(lengths, (tuple, list)) else (lengths, lengths)
    options["value"] = "entropic"
    between = sinkhorn(cost, a, b, lengths=None if rows is None else (rows, columns), **options).value
    of_rows = sinkhorn(row_cost, a, a, lengths=rows, **options).value
    of_columns = sinkhorn(column_cost, b, b, lengths=columns, **options).value
    return between - (of_rows + of_columns) / 2


class Settings(NamedTuple):
    """The arguments of the op that are not tensors."""

    iterations: int
    tolerance: float
    value: str
    with_plan: bool
    backend: str


def _solve(cost, a, b, eps, lengths, start, grad, settings) -> tuple[Tensor, ...]:
    """-> value, f, g, plan, iterations, error."""
    wanted = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in (cost, a, b))
    if not wanted:
        return _run(cost, a, b, eps, lengths, start, settings)[:6]
    if grad == "unrolled":
        if settings.backend == "reference":
            iterations, tolerance, value, with_plan, _ = settings
            return reference.sinkhorn(
                cost, a, b, eps, lengths, start, iterations, tolerance, value, with_plan, False
            )[:6]  # fmt: skip
        return _Unrolled.apply(cost, a, b, eps, lengths, start, settings)
    return _FixedPoint.apply(cost, a, b, eps, lengths, start, grad, settings)


def _run(cost, a, b, eps, lengths, start, settings, with_history=False) -> tuple[Tensor, ...]:
    iterations, tolerance, value, with_plan, backend = settings
    return ops.sinkhorn(
        cost, a, b, eps, lengths, start, iterations, tolerance, value, with_plan, with_history, backend
    )  # fmt: skip


class _Unrolled(torch.autograd.Function):
    """The derivative of the iterations, from the scalings of each: memory grows as iterations (n + m)."""

    @staticmethod
    def forward(ctx, cost, a, b, eps, lengths, start, settings):
        *results, history, offsets = _run(cost, a, b, eps, lengths, start, settings, with_history=True)
        _, f, g, plan, run, error = results
        ctx.save_for_backward(cost, a, b, eps, lengths, run, history, offsets)
        ctx.settings = settings
        ctx.mark_non_differentiable(f, g, run, error, *(() if settings.with_plan else (plan,)))
        ctx.set_materialize_grads(False)
        return tuple(results)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, upstream, _f, _g, plan_upstream, *_):
        cost, a, b, eps, lengths, run, history, offsets = ctx.saved_tensors
        if not ctx.settings.with_plan:  # a compiler hands zeros over
            plan_upstream = None
        if upstream is None and plan_upstream is None:
            return (None,) * 7
        if upstream is None:
            upstream = history.new_zeros(cost.shape[0])
        wanted = list(ctx.needs_input_grad[:3])
        gradients = ops.sinkhorn_backward(
            upstream, plan_upstream, cost, a, b, eps, lengths, run, history, offsets, ctx.settings.value, wanted,
            ctx.settings.backend,
        )  # fmt: skip
        return *(g if w else None for g, w in zip(gradients, wanted, strict=True)), *(None,) * 4


class _FixedPoint(torch.autograd.Function):
    """The derivatives that need no iterations but the plan they end with."""

    @staticmethod
    def forward(ctx, cost, a, b, eps, lengths, start, grad, settings):
        value, f, g, plan, run, error, _, _ = _run(cost, a, b, eps, lengths, start, settings._replace(with_plan=True))
        ctx.grad, ctx.settings, ctx.cost_dtype = grad, settings, cost.dtype
        ctx.save_for_backward(cost if grad == "implicit" and settings.value == "transport" else None, eps, f, g, plan)
        if not settings.with_plan:
            plan = plan.new_empty(0)
        ctx.constant_plan = not (settings.with_plan and grad == "implicit")
        ctx.mark_non_differentiable(f, g, run, error, *((plan,) if ctx.constant_plan else ()))
        ctx.set_materialize_grads(False)
        return value, f, g, plan, run, error

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, upstream, _f, _g, plan_upstream, *_):
        cost, eps, f, g, plan = ctx.saved_tensors
        if ctx.constant_plan:
            plan_upstream = None
        if upstream is None and plan_upstream is None:
            return (None,) * 8
        of_cost = of_a = of_b = None
        if upstream is not None:
            of_cost = upstream[:, None, None] * plan
            if ctx.settings.value == "entropic" and ctx.grad != "detached":
                of_a, of_b = (upstream[:, None] * torch.where(x.isfinite(), x, 0) for x in (f, g))
        # What the loss asks of the plan itself; of the entropic value nothing, its plan is the optimum.
        of_plan = plan_upstream
        if cost is not None and upstream is not None:
            through_cost = upstream[:, None, None] * torch.where(plan > 0, cost.to(plan.dtype), 0)
            of_plan = through_cost if of_plan is None else of_plan + through_cost
        if ctx.grad == "implicit" and of_plan is not None:
            weighted = of_plan * plan
            lambda_, mu = ops.sinkhorn_adjoint(plan, weighted.sum(2), weighted.sum(1))
            moved = (plan * (lambda_[:, :, None] + mu[:, None, :]) - weighted) / eps[:, None, None]
            lambda_, mu, moved = (x.to(plan.dtype) for x in (lambda_, mu, moved))
            of_cost = moved if of_cost is None else of_cost + moved
            of_a, of_b = (y if x is None else x + y for x, y in ((of_a, lambda_), (of_b, mu)))
        of_cost = of_cost.to(ctx.cost_dtype)
        return *(g if w else None for g, w in zip((of_cost, of_a, of_b), ctx.needs_input_grad, strict=False)), *(
            None,
        ) * 5
