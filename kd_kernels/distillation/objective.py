"""What a step minimises: one small object from a model and a batch to a loss.

The loop knows nothing else about the method. An objective owns whatever its method needs beside the student: a teacher,
a file of its predictions, a second tokenizer.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

import kd_kernels
from kd_kernels import Divergence
from kd_kernels.distillation.batches import Batch
from kd_kernels.distillation.text import PADDING


class Objective(Protocol):
    """A loss of a model on a batch."""

    def __call__(self, model: nn.Module, batch: Batch, normalizer: float) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, and numbers to report.

        All are sums over the tokens of the batch divided by `normalizer`: over the parts of a step they add up.
        """
        ...


@dataclass(frozen=True)
class LogitDistillation:
    """(1 - w) divergence(student, teacher) + w cross-entropy(student, text), w = `ce_weight`.

    Attributes:
        teacher: gives the distribution to match; never trained.
        bf16: run the student in bfloat16 autocast.
    """

    teacher: nn.Module
    divergence: Divergence
    temperature: float = 1.0
    scale_t2: bool = False
    ce_weight: float = 0.0
    backend: str = "auto"
    bf16: bool = False

    def __call__(self, model: nn.Module, batch: Batch, normalizer: float) -> tuple[Tensor, dict[str, Tensor]]:
        with torch.no_grad():
            target = logits(self.teacher, batch)
        with torch.autocast(batch.input_ids.device.type, torch.bfloat16, enabled=self.bf16):
            prediction = logits(model, batch)
        # Models of one tokenizer may pad the vocabulary to different sizes: "common" leaves the padding out.
        loss, stats = kd_kernels.divergence(
            prediction, target, self.divergence, temperature=self.temperature, scale_t2=self.scale_t2,
            labels=batch.labels, normalizer=normalizer, vocab="common", return_stats=True, backend=self.backend,
        )  # fmt: skip
        metrics = {
            "divergence": loss.detach(),
            "student_entropy": stats.student_entropy,
            "teacher_entropy": stats.teacher_entropy,
        }
        if self.ce_weight:
            cross_entropy = summed_cross_entropy(prediction, batch.labels) / normalizer
            metrics["cross_entropy"] = cross_entropy.detach()
            loss = (1 - self.ce_weight) * loss + self.ce_weight * cross_entropy
        return loss, metrics


def logits(model: nn.Module, batch: Batch) -> Tensor:
    """`[B, L, V]`"""
    return model(input_ids=batch.input_ids, use_cache=False).logits


def summed_cross_entropy(prediction: Tensor, labels: Tensor) -> Tensor:
    """Sum over the tokens of -log q(token), in nats."""
    return F.cross_entropy(prediction.flatten(0, 1).float(), labels.flatten(), ignore_index=PADDING, reduction="sum")
