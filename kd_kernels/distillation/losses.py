"""Losses of one student and one teacher on one text: what a method compares, put together from its settings."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

import kd_kernels
from kd_kernels import JSD, TVD, Divergence, ForwardKL, Head, JSStudent, JSTeacher, ReverseKL, TopK, methods
from kd_kernels.distillation.predictions import Form
from kd_kernels.distillation.settings import Settings
from kd_kernels.distillation.steps import Author
from kd_kernels.distillation.text import PADDING


@dataclass(frozen=True)
class Sides:
    """What a loss compares.

    Attributes:
        student: logits `[B, L, V]`, or their head.
        teacher: likewise, or the likeliest entries.
        labels: `[B, L]` int64, the token that follows; -100 where nothing counts.
        normalizer: what sums over the tokens are divided by.
        vocab: as for `kd_kernels.divergence`.
    """

    student: Tensor | Head
    teacher: Tensor | Head | TopK
    labels: Tensor
    normalizer: float
    vocab: str | int = "common"

    @property
    def mask(self) -> Tensor:
        """`[B, L]` bool: the tokens that count."""
        return self.labels != PADDING


# The loss, 0-d, and numbers to report by name, all sums over the tokens divided by the normalizer
Found = tuple[Tensor, dict[str, Tensor]]
Loss = Callable[[Sides], Found]


@dataclass(frozen=True)
class DivergenceLoss:
    """A divergence of next tokens."""

    divergence: Divergence
    form: Form
    temperature: float = 1.0
    scale_t2: bool = False
    backend: str = "auto"

    def __call__(self, sides: Sides) -> Found:
        loss, stats = kd_kernels.divergence(
            sides.student, sides.teacher, self.divergence, temperature=self.temperature, scale_t2=self.scale_t2,
            labels=sides.labels, normalizer=sides.normalizer, vocab=sides.vocab, return_stats=True,
            backend=self.backend, **self.form.options(),
        )  # fmt: skip
        return loss, {
            "divergence": loss,
            "student_entropy": stats.student_entropy,
            "teacher_entropy": stats.teacher_entropy,
        }


@dataclass(frozen=True)
class CrossEntropy:
    """-log q(token)."""

    form: Form

    def __call__(self, sides: Sides) -> Found:
        loss = self.form.summed_cross_entropy(sides.student, sides.labels) / sides.normalizer
        return loss, {"cross_entropy": loss}


@dataclass(frozen=True)
class Mix:
    """A weighted sum of losses."""

    parts: tuple[tuple[float, Loss], ...]

    def __call__(self, sides: Sides) -> Found:
        total, metrics = 0.0, {}
        for weight, part in self.parts:
            loss, found = part(sides)
            total = total + weight * loss
            metrics |= found
        return total, metrics


@dataclass(frozen=True)
class SinKD:
    """<P, C>, optimal transport between the distributions of a batch.

    As published a sum, divided by nothing: of a batch of more tokens it weighs more.
    """

    settings: Settings

    def __call__(self, sides: Sides) -> Found:
        chosen = self.settings
        transport = methods.sinkd(
            sides.student, sides.teacher, temperature=chosen.temperature, eps=chosen.eps, iterations=chosen.iterations,
            mask=sides.mask, form=chosen.form, vocab="common", backend=chosen.backend,
        )  # fmt: skip
        return transport, {"sinkd": transport}


def losses(settings: Settings, form: Form) -> dict[Author, Loss]:
    """The losses of the settings' method, for each author whose tokens a step may have.

    Raises:
        ValueError: parameters that do not fit.
    """
    return _BUILDERS[settings.method](settings, form)


def _divergence(settings: Settings, form: Form, divergence: Divergence, temperature: float) -> DivergenceLoss:
    return DivergenceLoss(divergence, form, temperature, settings.scale_t2, settings.backend)


def _mixed(loss: Loss, settings: Settings, form: Form) -> dict[Author, Loss]:
    """(1 - w) loss + w cross-entropy on the text; on what the student wrote, the loss alone."""
    weight = settings.ce_weight
    mixed = Mix(((1 - weight, loss), (weight, CrossEntropy(form)))) if weight else loss
    return {Author.TEXT: mixed, Author.STUDENT: loss}


def _of_kind(settings: Settings, form: Form) -> dict[Author, Loss]:
    return _mixed(_divergence(settings, form, settings.divergence, settings.temperature), settings, form)


def _gkd(settings: Settings, form: Form) -> dict[Author, Loss]:
    return _mixed(_divergence(settings, form, JSD(settings.beta), settings.temperature), settings, form)


def _sinkd(settings: Settings, form: Form) -> dict[Author, Loss]:
    mixed = _of_kind(settings, form)[Author.TEXT]
    return {Author.TEXT: Mix(((1.0, mixed), (settings.ot_weight, SinKD(settings))))}


def _f_distill(settings: Settings, form: Form) -> dict[Author, Loss]:
    """Step-wise losses on what the teacher wrote, on what the student wrote, or half of each."""
    beta = 0.5 if settings.beta is None else settings.beta

    def half(kind: Divergence, weight: float = 1.0) -> Loss:
        return Mix(((weight, _divergence(settings, form, kind, settings.temperature)),))

    return {
        "kl": {Author.TEACHER: half(ForwardKL())},
        "rkl": {Author.STUDENT: half(ReverseKL())},
        "js": {Author.TEACHER: half(JSTeacher(beta), 1 - beta), Author.STUDENT: half(JSStudent(beta), beta)},
        "tvd": {Author.TEACHER: half(TVD(), 0.5), Author.STUDENT: half(TVD(), 0.5)},
        "seqkd": {Author.TEACHER: CrossEntropy(form)},
    }[settings.variant]


_BUILDERS = {"divergence": _of_kind, "gkd": _gkd, "sinkd": _sinkd, "f_distill": _f_distill}
