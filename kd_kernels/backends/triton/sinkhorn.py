"""Launches of the Sinkhorn kernels."""

import torch
from torch import Tensor

from kd_kernels.backends.triton.launch import sinkhorn_options
from kd_kernels.backends.triton.sinkhorn_backward_kernel import (
    sinkhorn_backward_kernel,
    sinkhorn_gain_kernel,
    sinkhorn_gradient_kernel,
    sinkhorn_mass_gradient_kernel,
    sinkhorn_turns_kernel,
)
from kd_kernels.backends.triton.sinkhorn_kernel import sinkhorn_kernel, sinkhorn_start_kernel, sinkhorn_value_kernel
from kd_kernels.backends.triton.sinkhorn_tiles import STRIP, TILE


def sinkhorn(
    cost: Tensor,  # (B, n, m)
    a: Tensor | None,  # (B, n)
    b: Tensor | None,  # (B, m)
    eps: Tensor,  # (B,) float64
    lengths: Tensor | None,  # (B, 2)
    start: Tensor | None,  # (B, m)
    iterations: int,
    tolerance: float,
    value: str,
    with_plan: bool,
    with_history: bool,
) -> tuple[Tensor, ...]:
    """-> values (B,), f (B, n), g (B, m), plan (B, n, m), iterations, errors (B,), history (B, T, n + m), offsets."""
    batch, n, m = cost.shape

    def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=cost.device)

    total, error, run = empty(batch), empty(batch), empty(batch, dtype=torch.int64)
    f, g = (torch.full((batch, k), -torch.inf, device=cost.device) for k in (n, m))
    plan = torch.zeros((batch, n, m) if with_plan else 0, device=cost.device)
    slots = iterations if with_history else 2
    # Zeros where nothing is to be written: what is kept is defined everywhere.
    scalings = torch.zeros(batch, slots, n + m, device=cost.device)
    frames = torch.zeros(batch, 3, n + m, dtype=torch.float64, device=cost.device)
    if batch:
        masses, current = _masses(cost, a, b, lengths), empty(batch, n + m)
        eps = eps.contiguous()
        lengths = run if lengths is None else lengths.contiguous()
        options = {"HAS_LENGTHS": lengths is not run, **sinkhorn_options(amd=torch.version.hip is not None)}
        sinkhorn_start_kernel[(batch,)](
            cost, masses, eps, lengths, g if start is None else start.float().contiguous(),
            scalings, frames, current, run, n, m, slots, *cost.stride(), HAS_START=start is not None, **options,
        )  # fmt: skip
        sinkhorn_kernel[(batch,)](
            cost, masses, eps, lengths, scalings, frames, _tiles(cost), current, run,
            n, m, slots, iterations, tolerance, *cost.stride(), HAS_TOLERANCE=tolerance >= 0, **options,
        )  # fmt: skip
        sinkhorn_value_kernel[(batch,)](
            cost, masses, eps, lengths, frames, current, total, f, g, plan, error,
            n, m, *cost.stride(), ENTROPIC=value == "entropic", PLAN=with_plan, **options,
        )  # fmt: skip
    if not with_history:
        scalings, frames = scalings.new_empty(0), frames.new_empty(0)
    return total, f, g, plan, run, error, scalings, frames


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
    batch, n, m = cost.shape
    gradient = torch.empty(cost.shape if wanted[0] else 0, dtype=cost.dtype, device=cost.device)
    of_a, of_b = (torch.empty(batch, k, device=cost.device) for k in (n, m))
    if batch:
        iterations = history.shape[1]
        masses = _masses(cost, a, b, lengths)
        current, shares, centres = torch.empty_like(masses), torch.empty_like(history), torch.empty_like(of_b)
        turns = torch.empty(batch, iterations + 1, dtype=torch.int32, device=cost.device)
        eps, upstream = eps.contiguous(), upstream.float().contiguous()
        lengths = run if lengths is None else lengths.contiguous()
        options = {"HAS_LENGTHS": lengths is not run, **sinkhorn_options(amd=torch.version.hip is not None)}
        parts = {"ENTROPIC": value == "entropic", "HAS_PLAN": plan_upstream is not None, **options}
        asked = cost if plan_upstream is None else plan_upstream
        strides = cost.stride()
        past = masses, eps, lengths, run, history, offsets, turns
        sinkhorn_turns_kernel[(batch * (iterations + 1),)](
            masses, lengths, run, history, offsets, turns, n, m, iterations, **options
        )
        sinkhorn_gain_kernel[(batch,)](
            upstream, asked, cost, *past, shares, current, centres, n, m, iterations, *strides, *asked.stride(), **parts
        )
        # The kernel goes through all frames with the last.
        sinkhorn_backward_kernel[(batch,)](
            cost, masses, eps, lengths, run, history, offsets.clone(), turns, _tiles(cost), current, shares,
            n, m, iterations, *strides, **options,
        )  # fmt: skip
        tiles = -(-n // TILE.value) + -(-m // TILE.value)
        if (wanted[1] or wanted[2]) and tiles:
            sinkhorn_mass_gradient_kernel[(batch * tiles,)](
                lengths, run, shares, centres, of_a, of_b, n, m, iterations, **options
            )
        strips = batch * -(-n // STRIP.value) * -(-m // TILE.value)
        if wanted[0] and strips:
            sinkhorn_gradient_kernel[(strips,)](
                upstream, asked, cost, *past, centres, shares, gradient, n, m, iterations, *strides, *asked.stride(),
                **parts,
            )  # fmt: skip
    nothing = of_a.new_empty(0)
    return gradient, of_a if wanted[1] else nothing, of_b if wanted[2] else nothing


def _masses(cost: Tensor, a: Tensor | None, b: Tensor | None, lengths: Tensor | None) -> Tensor:
    """Of rows, then columns: (B, n + m); 0 beyond the lengths."""
    parts = []
    for axis, x in enumerate((a, b)):
        size = cost.shape[1 + axis]
        x = torch.ones(cost.shape[0], size, device=cost.device) if x is None else x.float()
        if lengths is not None:
            x = torch.where(torch.arange(size, device=cost.device) < lengths[:, axis, None], x, 0)
        parts.append(x)
    return torch.cat(parts, 1)


def _tiles(cost: Tensor) -> Tensor:
    """Memory for K."""
    rows, columns = (-(-k // TILE.value) * TILE.value for k in cost.shape[1:])
    return torch.empty(cost.shape[0], rows, columns, device=cost.device)
