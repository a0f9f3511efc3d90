"""Sinkhorn problems as the functions of a backend take them, with all there is of results and gradients."""

import torch
from torch import Tensor

import kd_kernels as kd
from kd_kernels.testing.budget import assert_within_budget


def by_kernels(
    cuda, cost, a, b, of_value, of_plan, *, eps=0.1, iterations=3, tol=None, lengths=None, start=None,
    value="transport", gradient=True, device=None,
) -> dict[str, Tensor]:  # fmt: skip
    """Of functions as kd_kernels.backends.cuda has them; `device`: what they are told of it."""
    device = device or {}
    of_problem = torch.as_tensor(eps, dtype=torch.float64).expand(len(cost)).contiguous()
    given = cost, a, b, of_problem, lengths
    results = cuda.sinkhorn(*given, start, iterations, -1.0 if tol is None else tol, value, True, True, **device)
    found = dict(zip(("value", "f", "g", "plan", "iterations", "error", "history", "offsets"), results, strict=True))
    if not gradient:
        return found
    past = found["iterations"], found["history"], found["offsets"]
    wanted = [True, a is not None, b is not None]
    gradients = cuda.sinkhorn_backward(of_value, of_plan, *given, *past, value, wanted, **device)
    return found | {name: x for name, x, some in zip(("dcost", "da", "db"), gradients, wanted, strict=True) if some}


def by_autograd(
    cost, a, b, of_value, of_plan, dtype, *, eps=0.1, iterations=3, tol=None, start=None, value="transport"
) -> dict[str, Tensor]:
    """Through the logarithmic form of the reference."""
    leaf = [None if x is None else x.detach().to(dtype).requires_grad_() for x in (cost, a, b)]
    init = None if start is None else (torch.zeros(cost.shape[:2], dtype=dtype), start.to(dtype))
    result = kd.sinkhorn(
        *leaf, eps=eps, iterations=iterations, tol=tol, init=init, value=value, return_plan=True, backend="reference"
    )  # fmt: skip
    ((result.value * of_value).sum() + (result.plan * of_plan).sum()).backward()
    found = {name: getattr(result, name) for name in ("value", "f", "g", "plan", "iterations")}
    found |= {"error": result.marginal_error}
    found |= {name: x.grad for name, x in zip(("dcost", "da", "db"), leaf, strict=True) if x is not None}
    return {name: x.detach() for name, x in found.items()}


def check(cuda, cost, a=None, b=None, *, plan=False, device=None, **options) -> tuple[dict, dict]:
    """Within twice the error of eager float32, from the very numbers the tensors hold."""
    weights = torch.rand(len(cost)) + 0.5, torch.rand(cost.shape) * plan
    actual = by_kernels(cuda, cost, a, b, *weights, **options, device=device)
    truth, eager = (by_autograd(cost, a, b, *weights, dtype, **options) for dtype in (torch.float64, torch.float32))
    assert torch.equal(actual["iterations"], truth["iterations"])
    for name in truth.keys() - {"iterations"}:
        # The others are sums and differences of masses, costs and potentials, numbers about 1.
        size = 0.0 if name in ("value", "plan", "dcost") else 1.0
        assert_within_budget(actual[name], truth[name], eager[name].to(actual[name].dtype), name, size)
    return actual, truth
