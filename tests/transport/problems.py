"""Transport problems, and the same iterations written by hand."""

import torch
from torch import Tensor


def random_problem(n: int, m: int, batch: int = 2, dtype: torch.dtype = torch.float64, high: float = 2.0):
    """Costs in [0, high] and marginals of mass 1."""
    cost = (torch.rand(batch, n, m, dtype=torch.float64) * high).to(dtype)
    real = torch.float64 if dtype == torch.float64 else torch.float32
    a, b = (torch.rand(batch, k, dtype=torch.float64) + 0.1 for k in (n, m))
    a, b = ((x / x.sum(1, keepdim=True)).to(real) for x in (a, b))
    return cost, a, b


def plain_iterations(cost: Tensor, a: Tensor, b: Tensor, eps: float, iterations: int) -> Tensor:
    """The plan by normalising exp(-C / eps) again and again, rows first: autograd keeps every step of it."""
    plan = (-cost / eps).exp()
    for _ in range(iterations):
        plan = plan * (a / plan.sum(2)).unsqueeze(2)
        plan = plan * (b / plan.sum(1)).unsqueeze(1)
    return plan


def leaves(*tensors: Tensor) -> list[Tensor]:
    return [x.detach().clone().requires_grad_() for x in tensors]


def gradients(loss: Tensor, tensors: list[Tensor]) -> list[Tensor]:
    return list(torch.autograd.grad(loss, tensors))
