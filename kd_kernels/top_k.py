"""A teacher of which only the likeliest entries were kept."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

TAILS = ("bucket", "renormalize", "truncate")


@dataclass(frozen=True, eq=False)
class TopK:
    """K log-probabilities of the tempered teacher in each row, and what to make of the rest of its mass.

    A slot whose id is negative or whose log-probability is -1000 or less is padding. An id that occurs twice counts
    with the sum of its probabilities.

    Attributes:
        ids: `[..., K]` integers, entries of the student's vocabulary.
        logprobs: `[..., K]` real, the teacher's at its own temperature.
        tail: "bucket" compares K + 1 entries, the last with the rest of the mass on both sides; "renormalize" compares
            both sides renormalised over the K entries; "truncate" sums over the K entries alone, with the
            probabilities that the student has in the whole vocabulary.
    """

    ids: Tensor
    logprobs: Tensor
    tail: str = "bucket"


PADDING = -1  # the id of an empty slot
# At and below this log-probability a slot is padding: it would not show in any sum.
_NOTHING = -1000.0


@dataclass(frozen=True)
class Entries:
    """Listed entries of N rows: distinct ids (N, K), PADDING in empty slots; log-probabilities, -inf in empty slots."""

    ids: Tensor
    logprobs: Tensor
    tail: str

    @classmethod
    def of(cls, ids: Tensor, logprobs: Tensor, tail: str, columns: int, real: torch.dtype) -> "Entries":
        """Entries (N, K) as users give them: duplicates, padding, ids beyond the columns that count."""
        ids, logprobs = ids.to(torch.int64), logprobs.to(real)
        empty = (ids < 0) | (ids >= columns) | (logprobs <= _NOTHING)
        ids, logprobs = ids.masked_fill(empty, PADDING), logprobs.masked_fill(empty, -math.inf)
        if ids.shape[1] > 1:
            ids, logprobs = _merge_duplicates(ids, logprobs)
        return cls(ids, logprobs, tail)

    rate = 1.0  # the log-probabilities are tempered already

    def detach(self) -> "Entries":
        return Entries(self.ids, self.logprobs.detach(), self.tail)

    def select(self, rows: Tensor | slice) -> "Entries":
        return Entries(self.ids[rows], self.logprobs[rows], self.tail)


def _merge_duplicates(ids: Tensor, logprobs: Tensor) -> tuple[Tensor, Tensor]:
    """One slot for each id, in ascending order, with the probability of all its slots; the others become empty.

    Sums over runs of equal ids by doubling: after s steps a slot holds the next 2^s of its run. A scatter with atomics
    would leave the order of the additions open.
    """
    ids, order = ids.sort(dim=1, stable=True)
    logprobs = logprobs.gather(1, order)
    first = torch.ones_like(ids, dtype=torch.bool)
    first[:, 1:] = ids[:, 1:] != ids[:, :-1]
    step = 1
    while step < ids.shape[1]:
        following = torch.where(ids[:, step:] == ids[:, :-step], logprobs[:, step:], -math.inf)
        logprobs = torch.cat([torch.logaddexp(logprobs[:, :-step], following), logprobs[:, -step:]], dim=1)
        step *= 2
    kept = first & (ids != PADDING)
    return ids.masked_fill(~kept, PADDING), logprobs.masked_fill(~kept, -math.inf)
