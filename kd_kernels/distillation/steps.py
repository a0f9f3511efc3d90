"""What each step of a run on one tokenizer sees: the text, the student's own continuation of it, or the teacher's."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor, nn

from kd_kernels.distillation.batches import Batch, Batches, derive_seed
from kd_kernels.distillation.sampling import Writer, uniform
from kd_kernels.distillation.text import PADDING
from kd_kernels.methods import on_policy


class Author(Enum):
    """Who wrote the tokens that a loss is taken of."""

    TEXT = "text"
    TEACHER = "teacher"
    STUDENT = "student"


@dataclass(frozen=True)
class Step:
    """The batches of a step, by author: one for most methods, two where halves of a loss have texts of their own."""

    batches: dict[Author, Batch]

    def count(self) -> int:
        """Number of tokens to predict."""
        return sum(batch.count() for batch in self.batches.values())

    def parts(self, n: int) -> list["Step"]:
        """n steps of equal size."""
        parts = {author: batch.parts(n) for author, batch in self.batches.items()}
        return [Step({author: batches[i] for author, batches in parts.items()}) for i in range(n)]


@dataclass(frozen=True)
class Steps:
    """Endless steps.

    Attributes:
        batches: of the text.
        authors: those whose tokens every step has.
        on_policy: fraction of the steps that have the student's tokens instead: the lambda of GKD.
        writer: how the student writes.
        teacher: `[n, L + 1]`, what the teacher wrote for each block of the text.
        seed: of the draws.
        parts: in which the student writes, to hold less at a time.
    """

    batches: Batches
    authors: frozenset[Author] = frozenset({Author.TEXT})
    on_policy: float = 0.0
    writer: Writer | None = None
    teacher: Tensor | None = None
    seed: int = 0
    parts: int = 1

    def at(self, step: int, model: nn.Module) -> Step:
        """A step, counted from 0; the student writes with what it has learnt by then."""
        batch = self.batches.at(step)
        student_writes = on_policy(step, self.on_policy, seed=self.seed)
        authors = frozenset({Author.STUDENT}) if student_writes else self.authors
        return Step({author: self._by(author, batch, step, model) for author in Author if author in authors})

    def _by(self, author: Author, batch: Batch, step: int, model: nn.Module) -> Batch:
        if author is Author.TEXT:
            return batch
        if author is Author.TEACHER:
            blocks = self.teacher[batch.rows].to(batch.labels.device, torch.int64)
            return written(blocks, self.writer.sampling.prompt)
        blocks = torch.cat([batch.input_ids[:, :1], batch.labels], 1)
        seeds = [derive_seed(self.seed, "student", step, row) for row in range(len(blocks))]
        numbers = uniform(blocks.shape[1] - self.writer.sampling.prompt, seeds, blocks.device)
        pieces = zip(blocks.chunk(self.parts), numbers.chunk(self.parts), strict=True)
        blocks = torch.cat([self.writer.carry_on(model, *piece) for piece in pieces])
        return written(blocks, self.writer.sampling.prompt)


def written(blocks: Tensor, prompt: int) -> Batch:
    """The batch of blocks `[B, L + 1]`, of which all but the prompt is to be predicted."""
    labels = blocks[:, 1:].clone()
    labels[:, : prompt - 1] = PADDING
    return Batch(blocks[:, :-1].clamp(min=0), labels)


def rows(batches: Batches, steps: Iterable[int]) -> list[int]:
    """The blocks that steps are made of, each once, in order."""
    return sorted({row for step in steps for row in batches.rows(step)})
