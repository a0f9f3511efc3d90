"""Ops of the likeliest entries of the vocabulary. They have no backends: their kernels are PyTorch's."""

import torch

from kd_kernels import entries
from kd_kernels.entries import Tokens
from kd_kernels.reduction import sum_dtype

torch.library.define(
    "kd_kernels::likeliest",
    "(Tensor logits, Tensor positions, Tensor lengths, float[] inverse_temperatures, SymInt k, bool standardise, "
    "bool shared) -> (Tensor log_probabilities, Tensor ids, Tensor statistics)",
    tags=torch.Tag.pt2_compliant_tag,
)
torch.library.define(
    "kd_kernels::likeliest_backward",
    "(Tensor upstream, Tensor logits, Tensor positions, Tensor lengths, Tensor ids, Tensor statistics, "
    "float[] inverse_temperatures, bool standardise) -> Tensor gradient",
    tags=torch.Tag.pt2_compliant_tag,
)


@torch.library.impl("kd_kernels::likeliest", "CompositeExplicitAutograd")
def _likeliest(logits, positions, lengths, *args):
    return entries.likeliest(logits, Tokens(positions, lengths), *args)


@torch.library.impl("kd_kernels::likeliest_backward", "CompositeExplicitAutograd")
def _likeliest_backward(upstream, logits, positions, lengths, *args):
    return entries.likeliest_backward(upstream, logits, Tokens(positions, lengths), *args)


@torch.library.register_fake("kd_kernels::likeliest")
def _likeliest_fake(logits, positions, lengths, inverse_temperatures, k, standardise, shared):
    (batch, count), rates = positions.shape, len(inverse_temperatures)
    real = sum_dtype(logits.dtype)
    return (
        logits.new_empty((rates, batch, count, k), dtype=real),
        positions.new_empty((batch, k)),
        logits.new_empty((batch, count, rates + 2), dtype=real),
    )


@torch.library.register_fake("kd_kernels::likeliest_backward")
def _likeliest_backward_fake(upstream, logits, *args):
    return logits.new_empty(logits.shape)


likeliest = torch.ops.kd_kernels.likeliest.default
likeliest_backward = torch.ops.kd_kernels.likeliest_backward.default
