"""What models predict, as losses take it, and cross-entropy on the text."""

import dataclasses
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

import kd_kernels
from kd_kernels import Head, TopK
from kd_kernels.distillation.batches import Batch
from kd_kernels.distillation.text import PADDING
from kd_kernels.language_models import hidden_states


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
        bf16: run a student in bfloat16 autocast.
    """

    logits: bool = False
    chunk_tokens: int | None = None
    memory_budget: int | None = None
    bf16: bool = False

    def predict(self, model: nn.Module, batch: Batch) -> Tensor | Head:
        """The model's side of a loss: logits `[B, L, V]`, or their head."""
        if self.logits:
            return logits(model, batch)
        with hidden_states(model):
            return Head.from_model(model, logits(model, batch))

    def predict_in_training(self, model: nn.Module, batch: Batch) -> Tensor | Head:
        """The same of a student that learns."""
        with torch.autocast(batch.input_ids.device.type, torch.bfloat16, enabled=self.bf16):
            prediction = self.predict(model, batch)
        if self.bf16 and isinstance(prediction, Head):
            # As autocast's LM head would compute; the teacher's stays as it is.
            prediction = dataclasses.replace(prediction, hidden=prediction.hidden.bfloat16())
        return prediction

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
