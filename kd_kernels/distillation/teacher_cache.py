"""A teacher's predictions for every block of a text, read from a file instead of made again.

The file is safetensors, memory-mapped. Of K entries a position it holds ids, log-probabilities and their total; of a
whole vocabulary the logits as the teacher gave them, so that nothing tells a run that reads them from one that computes
them. `teacher_cache_file.py` has the format.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kd_kernels import TopK
from kd_kernels.distillation import origin, teacher_cache_file
from kd_kernels.distillation.batches import Batch


class TeacherCache:
    """A cache that was found whole.

    Attributes:
        digest: a hash of all of it.
        top_k: entries of a position; those of the vocabulary where logits are kept.

    Raises:
        ValueError: the file is not a cache, or not as it was written.
        OSError: it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file, self._made_from, self.digest = teacher_cache_file.open_checked(path)
        self.top_k: int = self._made_from["top_k"]

    def check(self, now: dict[str, Any]) -> None:
        """Checks that the cache was made from what a run has.

        Args:
            now: entries of `origin`.

        Raises:
            ValueError: it was not; names both values.
        """
        if self._complete:  # logits know no temperature
            now = {name: value for name, value in now.items() if name != "temperature"}
        found = origin.differences(self._made_from, now)
        if found:
            raise ValueError(f"{self._path} was made for something else: {'; '.join(found)}")

    def source(self, tail: str, device: str) -> "CachedTeacher":
        """The teacher of an objective.

        Args:
            tail: as in `kd_kernels.TopK`.
            device: where to put what is read.
        """
        return CachedTeacher(self, tail, device, self._made_from["vocabulary"])

    def rows(self, blocks: Sequence[int]) -> dict[str, Tensor]:
        """What the file holds on these blocks, `[B, L, ...]` each."""
        return {name: self._rows(name, blocks) for name in self._file.keys()}  # noqa: SIM118

    def _rows(self, name: str, blocks: Sequence[int]) -> Tensor:
        tensor = self._file.get_slice(name)
        return torch.stack([tensor[block] for block in blocks])

    @property
    def _complete(self) -> bool:
        return self.top_k == self._made_from["vocabulary"]


@dataclass(frozen=True)
class CachedTeacher:
    """The predictions of a cache, as a loss takes them."""

    cache: TeacherCache
    tail: str
    device: str
    vocabulary: int

    def __call__(self, batch: Batch) -> Tensor | TopK:
        rows = {name: tensor.to(self.device) for name, tensor in self.cache.rows(batch.rows).items()}
        if "logits" in rows:
            return rows["logits"]
        logprobs = rows["logprobs"].float()
        # Each is rounded, their total is not: what is left for the tail keeps its digits.
        logprobs = logprobs - logprobs.logsumexp(-1, keepdim=True) + rows["total"][..., None]
        return TopK(rows["ids"].to(torch.int64), logprobs, self.tail)
