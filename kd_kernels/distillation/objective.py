"""What a step minimises: one small object from a model and a batch to a loss.

The loop knows nothing else about the method. An objective owns whatever its method needs beside the student: a teacher,
a file of its predictions, a second tokenizer.
"""

import dataclasses
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

import kd_kernels
from kd_kernels import Divergence, Head, TopK
from kd_kernels.distillation.batches import Batch
from kd_kernels.distillation.text import PADDING
from kd_kernels.language_models import hidden_states


class Objective(Protocol):
    """A loss of a model on a batch."""

    def __call__(self, model: nn.Module, batch: Batch, normalizer: float) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, and numbers to report.

        All are sums over the tokens of the batch divided by `normalizer`: over the parts of a step they add up.
        """
        ...


class Source(Protocol):
    """Where a teacher's distributions come from.

    Attributes:
        vocabulary: number of entries of which a `TopK` lists some.
    """

    vocabulary: int | None

    def __call__(self, batch: Batch) -> Tensor | Head | TopK:
        """The teacher's side of the loss."""
        ...


@dataclass(frozen=True)
class Form:
    """How a model's predictions are held, and a loss of them computed.

    Attributes:
        logits: whole, as logits; otherwise as hidden states and an LM head.
        chunk_tokens: as for `kd_kernels.divergence`.
        memory_budget: likewise, in bytes.
    """

    logits: bool = False
    chunk_tokens: int | None = None
    memory_budget: int | None = None

    def predict(self, model: nn.Module, batch: Batch) -> Tensor | Head:
        """The model's side of a loss: logits `[B, L, V]`, or their head."""
        if self.logits:
            return logits(model, batch)
        with hidden_states(model):
            return Head.from_model(model, logits(model, batch))

    def options(self) -> dict[str, int | None]:
        """Arguments of `kd_kernels.divergence`."""
        return {"chunk_tokens": self.chunk_tokens, "memory_budget": self.memory_budget}

    def summed_cross_entropy(self, prediction: Tensor | Head, labels: Tensor) -> Tensor:
        """Sum over the tokens of -log q(token), in nats."""
        if isinstance(prediction, Tensor):
            return summed_cross_entropy(prediction, labels)
        return summed_kl_from_text(prediction, labels, **self.options())


@dataclass(frozen=True)
class LiveTeacher:
    """A model that is run for every batch, and never trained."""

    model: nn.Module
    form: Form
    vocabulary: None = None

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Tensor | Head:
        return self.form.predict(self.model, batch)


@dataclass(frozen=True)
class Distillation:
    """(1 - w) divergence(student, teacher) + w cross-entropy(student, text), w = `ce_weight`.

    Attributes:
        teacher: gives the distribution to match.
        form: how the student's predictions are held.
        bf16: run the student in bfloat16 autocast.
    """

    teacher: Source
    divergence: Divergence
    temperature: float = 1.0
    scale_t2: bool = False
    ce_weight: float = 0.0
    backend: str = "auto"
    bf16: bool = False
    form: Form = Form()

    def __call__(self, model: nn.Module, batch: Batch, normalizer: float) -> tuple[Tensor, dict[str, Tensor]]:
        return self.compare(self.predict(model, batch), self.teacher(batch), batch.labels, normalizer)

    def predict(self, model: nn.Module, batch: Batch) -> Tensor | Head:
        """The student's side."""
        with torch.autocast(batch.input_ids.device.type, torch.bfloat16, enabled=self.bf16):
            prediction = self.form.predict(model, batch)
        if self.bf16 and isinstance(
            prediction, Head
        ):  # as autocast's LM head would compute; the teacher's stays as it is
            prediction = dataclasses.replace(prediction, hidden=prediction.hidden.bfloat16())
        return prediction

    def compare(
        self, prediction: Tensor | Head, target: Tensor | Head | TopK, labels: Tensor, normalizer: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of the two sides, and numbers to report."""
        target, vocab = self._common(prediction, target)
        loss, stats = kd_kernels.divergence(
            prediction, target, self.divergence, temperature=self.temperature, scale_t2=self.scale_t2,
            labels=labels, normalizer=normalizer, vocab=vocab, return_stats=True,
            backend=self.backend, **self.form.options(),
        )  # fmt: skip
        metrics = {
            "divergence": loss.detach(),
            "student_entropy": stats.student_entropy,
            "teacher_entropy": stats.teacher_entropy,
        }
        if self.ce_weight:
            cross_entropy = self.form.summed_cross_entropy(prediction, labels) / normalizer
            metrics["cross_entropy"] = cross_entropy.detach()
            loss = (1 - self.ce_weight) * loss + self.ce_weight * cross_entropy
        return loss, metrics

    def _common(
        self, prediction: Tensor | Head, target: Tensor | Head | TopK
    ) -> tuple[Tensor | Head | TopK, str | int]:
        """The teacher's side, and the entries that count.

        Models of one tokenizer may pad the vocabulary to different sizes: what both have leaves the padding out.
        """
        if not isinstance(target, TopK):
            return target, "common"
        size = len(prediction.weight) if isinstance(prediction, Head) else prediction.shape[-1]
        common = min(size, self.teacher.vocabulary)
        ids = torch.where(target.ids < common, target.ids, -1)  # an empty slot
        return dataclasses.replace(target, ids=ids), common


def logits(model: nn.Module, batch: Batch) -> Tensor:
    """`[B, L, V]`; under `hidden_states` `[B, L, H]`."""
    return model(input_ids=batch.input_ids, use_cache=False).logits


def summed_cross_entropy(prediction: Tensor, labels: Tensor) -> Tensor:
    """Sum over the tokens of -log q(token), in nats."""
    return F.cross_entropy(prediction.flatten(0, 1).float(), labels.flatten(), ignore_index=PADDING, reduction="sum")


def summed_kl_from_text(prediction: Tensor | Head, labels: Tensor, **options: int | None) -> Tensor:
    """The same as the forward KL from all of the mass on the token, without a copy of the logits.

    options: arguments of `kd_kernels.divergence`.
    """
    token = labels[..., None]
    text = TopK(token, torch.zeros_like(token, dtype=torch.float32), tail="truncate")
    return kd_kernels.divergence(
        prediction, text, "forward_kl", labels=labels, ignore_index=PADDING, reduction="sum", **options
    )
