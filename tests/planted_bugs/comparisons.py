"""What situations of every sort compare results with."""

import math
from contextlib import contextmanager
from unittest import mock

import torch

from kd_kernels.testing.budget import allowed_error

GUARD = 4096  # entries after a tensor, at least a block


def close(actual, expected, plain, what, size=0.0):
    """Within eight times the budget, which a few rows know but roughly."""
    assert not actual.isnan().any(), f"{what}: NaN"
    assert torch.equal(actual.isinf(), expected.isinf()), f"{what}: infinite in other places than the truth"
    finite = expected.isfinite()
    error = (actual.double() - expected)[finite].abs().max().item()
    assert error <= 8 * allowed_error(expected, plain, size), f"{what}: error {error:.1e}"


@contextmanager
def guarded_memory():
    """torch.empty returns NaN (of integers, -1), followed by numbers that must stay."""
    empty, guards = torch.empty, []

    def guarded(*shape, **options):
        shape = torch.Size(shape[0] if isinstance(shape[0], tuple) else shape)
        numel = shape.numel()
        memory = empty(numel + GUARD, **options)
        memory.fill_(math.nan if memory.is_floating_point() else -1)
        guards.append(memory[numel:].fill_(7))
        return memory[:numel].view(shape)

    with mock.patch.object(torch, "empty", guarded):
        yield
    assert all((guard == 7).all() for guard in guards), "memory after a tensor was written"
