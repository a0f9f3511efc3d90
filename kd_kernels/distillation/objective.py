"""What a step minimises: one small object from a model and a batch to a loss.

The loop knows nothing else about the method. An objective owns whatever its method needs beside the student: a teacher,
a file of its predictions, a second tokenizer, a schedule.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from kd_kernels import Head, TopK
from kd_kernels.distillation.losses import Losses, Sides
from kd_kernels.distillation.predictions import Form, Source
from kd_kernels.distillation.steps import Step


class Objective(Protocol):
    """A loss of a model on a batch."""

    def __call__(self, model: nn.Module, part: Any, whole: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, and numbers to report.

        All are sums over the tokens of the part divided by the number of tokens of the whole: over the parts of a step
        they add up.

        Args:
            model: the student.
            part: a batch, or a part of it.
            whole: the batch of the step.
        """
        ...

    def advance(self, sums: Mapping[str, float], step: int) -> None:
        """Called after each step, counted from 1, with its loss and numbers."""

    def state(self) -> dict[str, float | None]:
        """What a checkpoint has to keep, so that a run can go on."""
        return {}

    def restore(self, state: Mapping[str, float | None]) -> None:
        """Goes back to a state."""


@dataclass(frozen=True)
class Distillation(Objective):
    """A sum of losses of one student and one teacher, which share their tokens.

    Attributes:
        teacher: gives the distributions to match.
        losses: one for each author of a text, of the tokens that they wrote.
        form: how the student's predictions are held.
    """

    teacher: Source
    losses: Losses
    form: Form

    def __call__(self, model: nn.Module, part: Step, whole: Step) -> tuple[Tensor, dict[str, Tensor]]:
        total, metrics = None, {}
        for author, batch in part.batches.items():
            student = self.form.predict_in_training(model, batch)
            teacher = self.teacher(batch) if self.losses.of_teacher else None
            teacher, vocab = self._common(student, teacher)
            # A student that ends every text at once leaves nothing to learn from.
            normalizer = float(max(1, whole.batches[author].count()))
            loss, found = self.losses.by_author[author](Sides(student, teacher, batch.labels, normalizer, vocab))
            total = loss if total is None else total + loss
            of = f"{author.value}_text_" if len(part.batches) > 1 else ""
            metrics |= {of + name: value.detach() for name, value in found.items()}
        return total, metrics

    def advance(self, sums: Mapping[str, float], step: int) -> None:
        if self.losses.schedule is not None:
            self.losses.schedule.advance(sums, step)

    def state(self) -> dict[str, float | None]:
        return {} if self.losses.schedule is None else self.losses.schedule.state()

    def restore(self, state: Mapping[str, float | None]) -> None:
        if self.losses.schedule is not None:
            self.losses.schedule.restore(state)

    def _common(
        self, student: Tensor | Head, teacher: Tensor | Head | TopK | None
    ) -> tuple[Tensor | Head | TopK | None, str | int]:
        """The teacher's side, and the entries that count.

        Models of one tokenizer may pad the vocabulary to different sizes: what both have leaves the padding out.
        """
        if not isinstance(teacher, TopK):
            return teacher, "common"
        size = len(student.weight) if isinstance(student, Head) else student.shape[-1]
        common = min(size, self.teacher.vocabulary)
        ids = dataclasses.replace(teacher, ids=teacher.ids.masked_fill(teacher.ids >= common, -1))  # an empty slot
        return ids, common
