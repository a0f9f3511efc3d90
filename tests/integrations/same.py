"""Comparison of a loss with another of the same arguments: value and gradients."""

from collections.abc import Callable

import torch
from torch import Tensor


def assert_same(ours: Callable, theirs: Callable, leaves: dict[str, Tensor], rtol: float = 1e-9) -> None:
    """Of two functions without arguments; both give a tensor, or several of which the first is differentiated."""
    results = []
    for function in (ours, theirs):
        outputs = function()
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        weights = torch.linspace(0.5, 1.5, outputs[0].numel(), dtype=outputs[0].dtype).reshape(outputs[0].shape)
        gradients = torch.autograd.grad((outputs[0] * weights).sum(), list(leaves.values()))
        results.append((outputs, gradients))
    (values, gradients), (expected_values, expected_gradients) = results
    torch.testing.assert_close(values, expected_values, rtol=rtol, atol=rtol, check_dtype=False)
    for name, actual, expected in zip(leaves, gradients, expected_gradients, strict=True):
        scale = max(expected.abs().max().item(), 1e-3)
        torch.testing.assert_close(actual, expected, rtol=rtol, atol=rtol * scale, check_dtype=False, msg=name)


def leaf(*shape: int, scale: float = 1.0, dtype: torch.dtype = torch.float64) -> Tensor:
    return (scale * torch.randn(*shape, dtype=dtype)).requires_grad_()


def kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def jsd(log_p: Tensor, log_q: Tensor, beta: float) -> Tensor:
    """Generalised JSD of rows."""
    if beta in (0, 1):
        return kl(log_q, log_p) if beta else kl(log_p, log_q)
    m = (beta * log_p.exp() + (1 - beta) * log_q.exp()).log()
    return beta * kl(log_p, m) + (1 - beta) * kl(log_q, m)
