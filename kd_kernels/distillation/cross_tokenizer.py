"""Objectives between models of different tokenizers: ULD and MultiLevelOT."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from kd_kernels import methods
from kd_kernels.distillation.objective import Objective
from kd_kernels.distillation.predictions import logits, summed_cross_entropy
from kd_kernels.distillation.settings import Settings
from kd_kernels.distillation.spans import SpanBatch

# (student logits, teacher logits, mask of each) -> the loss and, by name, its parts, 0-d, sums over the tokens
Comparison = Callable[[Tensor, Tensor, Tensor, Tensor], dict[str, Tensor]]


@dataclass(frozen=True)
class CrossTokenizer(Objective):
    """cross-entropy(student, text) + weight loss(student, teacher), each side in tokens of its own.

    All are per token of the student: sums over tokens, as the papers have them, with one divisor.

    Attributes:
        teacher: is run for every batch, and never trained.
        compare: the loss.
        name: of the loss among what `compare` gives.
        weight: of the loss.
        bf16: run the student in bfloat16 autocast.
    """

    teacher: nn.Module
    compare: Comparison
    name: str
    weight: float
    bf16: bool = False

    def __call__(self, model: nn.Module, part: SpanBatch, whole: SpanBatch) -> tuple[Tensor, dict[str, Tensor]]:
        with torch.autocast(part.student.input_ids.device.type, torch.bfloat16, enabled=self.bf16):
            prediction = logits(model, part.student)
        with torch.no_grad():
            target = logits(self.teacher, part.teacher)
        sums = {"cross_entropy": summed_cross_entropy(prediction, part.student.labels)}
        sums |= self.compare(prediction, target, *part.masks())
        parts = {name: value / float(whole.count()) for name, value in sums.items()}
        loss = parts["cross_entropy"] + self.weight * parts[self.name]
        return loss, {name: value.detach() for name, value in parts.items()}


def comparison(settings: Settings) -> Comparison:
    """The loss of the settings."""
    return partial({"uld": _uld, "multilevel_ot": _multilevel_ot}[settings.method], settings)


def _uld(settings: Settings, student: Tensor, teacher: Tensor, *masks: Tensor) -> dict[str, Tensor]:
    options = {"temperature": settings.temperature, "top_k": settings.top_k, "backend": settings.backend}
    return {"uld": methods.uld(student, teacher, *masks, reduction="sum", **options)}


def _multilevel_ot(settings: Settings, student: Tensor, teacher: Tensor, *masks: Tensor) -> dict[str, Tensor]:
    found = methods.multilevel_ot(
        student, teacher, *masks, k=settings.top_k, alpha=1.0, beta=settings.beta, gamma=settings.gamma,
        tau_sd=settings.temperature, eps=settings.eps, iterations=settings.iterations, backend=settings.backend,
    )  # fmt: skip
    parts = {"multilevel_ot": found.total, "had": found.had, "sl": found.sl, "sd": found.sd}
    # They are means over the sequences, each of which has tokens on both sides.
    return {name: value * len(student) for name, value in parts.items()}


def try_out(settings: Settings, vocabularies: tuple[int, int]) -> None:
    """Lets the loss refuse its arguments, on one token of the student and one of the teacher.

    Args:
        settings: of the run.
        vocabularies: sizes, of the student's and of the teacher's.
    """
    dtypes = torch.bfloat16 if settings.bf16 else torch.float32, getattr(torch, settings.dtype)
    sides = [
        torch.zeros(1, 1, size, dtype=dtype, device=settings.device)
        for size, dtype in zip(vocabularies, dtypes, strict=True)
    ]
    mask = torch.ones(1, 1, dtype=torch.bool, device=settings.device)
    comparison(settings)(*sides, mask, mask)
