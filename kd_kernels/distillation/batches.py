"""Batches as a function of the seed and the step: a run that resumes at a step sees what it would have seen."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor, nn

from kd_kernels.distillation.text import PADDING


@dataclass(frozen=True)
class Batch:
    """Tokens and, at the same position, the token that follows.

    Attributes:
        input_ids: `[B, L]` int64.
        labels: `[B, L]` int64, already shifted, -100 where nothing follows.
        rows: the blocks' places in the text, B of them; empty where nobody asks.
    """

    input_ids: Tensor
    labels: Tensor
    rows: Sequence[int] = ()

    @classmethod
    def of(cls, blocks: Tensor, device: str, rows: Sequence[int] = ()) -> "Batch":
        """The batch of blocks `[B, L + 1]`."""
        blocks = blocks.to(device, torch.int64)
        # After the last token nothing is predicted; with causal attention any id will do there.
        return cls(blocks[:, :-1].clamp(min=0), blocks[:, 1:], rows)

    def count(self) -> int:
        """Number of tokens to predict."""
        return int((self.labels != PADDING).sum())

    def parts(self, n: int) -> list["Batch"]:
        """n batches of equal size."""
        size = len(self.input_ids) // n
        places = [slice(i * size, (i + 1) * size) for i in range(n)]
        return [Batch(self.input_ids[at], self.labels[at], self.rows[at]) for at in places]


class Batches:
    """Endless batches of the blocks, each epoch in an order of its own."""

    def __init__(self, blocks: Tensor, size: int, seed: int, device: str) -> None:
        self._blocks, self._size, self._seed, self._device = blocks, size, seed, device
        self._order = lru_cache(maxsize=2)(self._shuffle)

    def at(self, step: int, model: nn.Module | None = None) -> Batch:
        """What a step sees, counted from 0; the text is the same for every model."""
        rows = self.rows(step)
        return Batch.of(self._blocks[rows], self._device, rows)

    def rows(self, step: int) -> list[int]:
        """Which blocks the batch of a step is made of."""
        n = len(self._blocks)
        places = range(step * self._size, (step + 1) * self._size)
        return [int(self._order(place // n)[place % n]) for place in places]

    def _shuffle(self, epoch: int) -> Tensor:
        generator = torch.Generator().manual_seed(derive_seed(self._seed, "epoch", epoch))
        return torch.randperm(len(self._blocks), generator=generator)


def derive_seed(*parts: int | str) -> int:
    """A seed for one purpose, unrelated to those for others."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:7], "big")
