"""Batched Sinkhorn iterations and their derivative."""

import torch
from torch import Tensor

from kd_kernels import _cuda
from kd_kernels.backends.cuda.call import DTYPES, address, where


def sinkhorn(
    cost: Tensor,  # (B, n, m)
    a: Tensor | None,  # (B, n); None: ones
    b: Tensor | None,  # (B, m)
    eps: Tensor,  # (B,) float64
    lengths: Tensor | None,  # (B, 2)
    start: Tensor | None,  # (B, m)
    iterations: int,
    tolerance: float,  # negative: none
    value: str,
    with_plan: bool,
    with_history: bool,
) -> tuple[Tensor, ...]:
    """-> values (B,), f (B, n), g (B, m), plan (B, n, m), iterations, errors (B,), history (B, T, n + m), offsets."""
    batch, n, m = cost.shape

    def full(fill: float, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """What lies beyond the lengths no kernel writes."""
        if lengths is None:
            return torch.empty(shape, dtype=dtype, device=cost.device)
        return torch.full(shape, fill, dtype=dtype, device=cost.device)

    total, error = (torch.empty(batch, device=cost.device) for _ in range(2))
    run = torch.empty(batch, dtype=torch.int64, device=cost.device)
    f, g = full(-torch.inf, batch, n), full(-torch.inf, batch, m)
    plan = full(0, *((batch, n, m) if with_plan else (0,)))
    shape = (batch, iterations, n + m) if with_history else (0,)
    # Nor the iterations that a tolerance saves.
    history = full(0, *shape) if tolerance < 0 else torch.zeros(shape, device=cost.device)
    offsets = full(0, *((batch, 3, n + m) if with_history else (0,)), dtype=torch.float64)
    problems, held = _problems(cost, a, b, eps, lengths, iterations, value)
    start = None if start is None else start.float().contiguous()
    device = _device(cost)
    workspace = torch.empty(_cuda.sinkhorn_workspace(problems, device, False), device=cost.device)
    _cuda.sinkhorn(
        *where(cost), device, problems, address(start), tolerance, total.data_ptr(), f.data_ptr(), g.data_ptr(),
        plan.data_ptr() if with_plan else 0, run.data_ptr(), error.data_ptr(),
        history.data_ptr() if with_history else 0, offsets.data_ptr() if with_history else 0, workspace.data_ptr(),
    )  # fmt: skip
    del held
    return total, f, g, plan, run, error, history, offsets


def sinkhorn_backward(
    upstream: Tensor,  # (B,)
    plan_upstream: Tensor | None,  # (B, n, m)
    cost: Tensor,
    a: Tensor | None,
    b: Tensor | None,
    eps: Tensor,
    lengths: Tensor | None,
    run: Tensor,  # (B,)
    history: Tensor,  # (B, T, n + m)
    offsets: Tensor,  # (B, 3, n + m)
    value: str,
    wanted: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """-> gradients of cost, a and b; those not wanted [0]."""
    new = torch.empty if lengths is None else torch.zeros
    shapes = (cost.shape, cost.shape[:2], (cost.shape[0], cost.shape[2]))
    of_cost, of_a, of_b = (
        new(shape if some else 0, dtype=dtype, device=cost.device)
        for shape, some, dtype in zip(shapes, wanted, (cost.dtype, torch.float32, torch.float32), strict=True)
    )
    in_place = wanted[0] and cost.dtype == torch.float32
    gathered = of_cost if in_place else torch.empty(cost.shape, device=cost.device)
    upstream = upstream.float().contiguous()
    plan_upstream = None if plan_upstream is None else plan_upstream.float().contiguous()
    run, history, offsets = run.contiguous(), history.contiguous(), offsets.contiguous()
    problems, held = _problems(cost, a, b, eps, lengths, history.shape[1], value)
    device = _device(cost)
    workspace = torch.empty(_cuda.sinkhorn_workspace(problems, device, True), device=cost.device)
    gradients = (x.data_ptr() if some else 0 for x, some in zip((of_cost, of_a, of_b), wanted, strict=True))
    to_cost, to_a, to_b = gradients
    _cuda.sinkhorn_backward(
        *where(cost), device, problems, upstream.data_ptr(), address(plan_upstream), run.data_ptr(),
        history.data_ptr(), offsets.data_ptr(), to_cost, gathered.data_ptr(), to_a, to_b, workspace.data_ptr(),
    )  # fmt: skip
    del held
    return of_cost, of_a, of_b


def _problems(cost, a, b, eps, lengths, iterations, value) -> tuple[_cuda.SinkhornProblems, tuple[Tensor | None, ...]]:
    """What the kernels are told of the problems, and what has to live until they were called."""
    a, b = (x if x is None else x.float().contiguous() for x in (a, b))
    eps = eps.contiguous()
    lengths = None if lengths is None else lengths.to(torch.int64).contiguous()
    problems = _cuda.SinkhornProblems(
        *cost.shape, cost.data_ptr(), *cost.stride(), DTYPES[cost.dtype], address(a), address(b), eps.data_ptr(),
        address(lengths), iterations, value == "entropic",
    )  # fmt: skip
    return problems, (cost, a, b, eps, lengths)


def _device(x: Tensor) -> _cuda.Device:
    major, minor = torch.cuda.get_device_capability(x.device)
    properties = torch.cuda.get_device_properties(x.device)
    return _cuda.Device(10 * major + minor, properties.multi_processor_count, properties.shared_memory_per_block_optin)
