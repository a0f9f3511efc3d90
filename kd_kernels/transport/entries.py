"""The derivative of the log-probabilities of the likeliest entries."""

from collections.abc import Sequence

import torch
from torch import Tensor

from kd_kernels import ops


def likeliest(
    logits: Tensor,  # (B, L, V)
    positions: Tensor,  # (B, T): where the t-th token that counts stands
    lengths: Tensor,  # (B,): how many count
    temperatures: Sequence[float],
    k: int,
    *,
    standardise: bool = False,
    shared: bool = False,
) -> tuple[Tensor, Tensor]:
    """Log-probabilities of the k entries with the largest sums of probabilities over a sequence, and their ids.

    -> (R, B, T, k), for each temperature, -inf for tokens that do not count and are not read; and (B, k), constants.
    The ranking is at the first temperature; equal sums are ranked by id. With `shared`, all sequences are summed and
    have the same ids; with `standardise`, logits are divided by their standard deviation plus 1e-4 first. Forward and
    backward hold no tensor of the size of the logits but their gradient.
    """
    rates = [1 / t for t in temperatures]
    if logits.requires_grad and torch.is_grad_enabled():
        return _Likeliest.apply(logits, positions, lengths, rates, k, standardise, shared)
    return ops.likeliest(logits, positions, lengths, rates, k, standardise, shared)[:2]


class _Likeliest(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits, positions, lengths, rates, k, standardise, shared):
        log_probabilities, ids, statistics = ops.likeliest(logits, positions, lengths, rates, k, standardise, shared)
        ctx.save_for_backward(logits, positions, lengths, ids, statistics)
        ctx.spec = rates, standardise
        ctx.mark_non_differentiable(ids)
        return log_probabilities, ids

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, upstream, _):
        return ops.likeliest_backward(upstream, *ctx.saved_tensors, *ctx.spec), None, None, None, None, None, None
