"""Tokens that count, of sequences that two tokenizers made: the t-th of the student is held against the teacher's t-th.

Found on the device; the host waits for nothing.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Counted(NamedTuple):
    """The tokens of each sequence that count.

    Attributes:
        positions: `[B, T]`, where the t-th stands. Beyond the last come tokens that do not count, each once. T is L;
            on CPU, where looking costs nothing, the largest length.
        lengths: `[B]`, how many there are.
    """

    positions: Tensor
    lengths: Tensor


def counted(mask: Tensor | None, logits: Tensor) -> Counted:
    """Of a mask `[B, L]`, None for all, and logits `[B, L, V]`."""
    batch, length = logits.shape[:2]
    if mask is None:
        every = torch.arange(length, device=logits.device).expand(batch, length)
        return Counted(every, torch.full((batch,), length, device=logits.device))
    positions, lengths = mask.byte().argsort(dim=1, descending=True, stable=True), mask.sum(1)
    if mask.device.type == "cpu" and not torch.compiler.is_compiling() and mask.numel():
        positions = positions[:, : max(1, int(lengths.max()))]
    return Counted(positions, lengths)


def ranks(mask: Tensor | None, logits: Tensor) -> Tensor:
    """How many counted tokens stand before each, `[B, L]`."""
    batch, length = logits.shape[:2]
    if mask is None:
        return torch.arange(length, device=logits.device).expand(batch, length)
    return mask.cumsum(1) - mask.long()


def before(lengths: Tensor, width: int) -> Tensor:
    """`[B, width]`: which of the first tokens are there."""
    return torch.arange(width, device=lengths.device) < lengths[:, None]
