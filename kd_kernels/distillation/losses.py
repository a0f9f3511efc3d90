"""Losses of one student and one teacher on one text: what a method compares, put together from its settings."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from torch import Tensor

import kd_kernels
from kd_kernels import Divergence, Head, TopK, methods
from kd_kernels.distillation.predictions import Form
from kd_kernels.distillation.settings import Settings
from kd_kernels.distillation.steps import Author
from kd_kernels.distillation.text import PADDING


@dataclass(frozen=True)
class Sides:
    """What a loss compares.

    Attributes:
        student: logits `[B, L, V]`, or their head.
        teacher: likewise, or the likeliest entries; None for losses that do not look at it.
        labels: `[B, L]` int64, the token that follows; -100 where nothing counts.
        normalizer: what sums over the tokens are divided by.
        vocab: as for `kd_kernels.divergence`.
    """

    student: Tensor | Head
    teacher: Tensor | Head | TopK | None
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
class MethodLoss:
    """A loss of `kd_kernels.methods` that takes the two sides.

    Attributes:
        name: of the method.
        method: the function, with its own parameters.
        options: of how it is computed.
    """

    name: str
    method: Callable[..., Tensor]
    options: Mapping[str, Any]

    def __call__(self, sides: Sides) -> Found:
        counting = {"labels": sides.labels, "normalizer": sides.normalizer, "reduction": "mean"}
        loss = self.method(sides.student, sides.teacher, vocab=sides.vocab, **counting, **self.options)
        return loss, {self.name: loss}


@dataclass(frozen=True)
class Half:
    """A loss of `kd_kernels.methods` on one of the two texts that it has halves for.

    Attributes:
        name: of the method.
        method: the function, with its own parameters.
        author: of the text.
        options: of how it is computed.
    """

    name: str
    method: Callable[..., Tensor]
    author: Author
    options: Mapping[str, Any]

    def __call__(self, sides: Sides) -> Found:
        samples = methods.Samples(sides.student, sides.teacher, labels=sides.labels)
        counting = {"normalizer": sides.normalizer, "reduction": "mean"}
        of_author = {f"{self.author.value}_samples": samples}
        loss = self.method(**of_author, vocab=sides.vocab, **counting, **self.options)
        return loss, {self.name: loss}


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


class Schedule(Protocol):
    """A parameter that changes from step to step."""

    def advance(self, sums: Mapping[str, float], step: int) -> None:
        """Called after each step, counted from 1, with its loss and numbers."""
        ...

    def state(self) -> dict[str, float | None]:
        """What a checkpoint has to keep."""
        ...

    def restore(self, state: Mapping[str, float | None]) -> None:
        """Goes back to a state."""
        ...


@dataclass(frozen=True)
class TAID:
    """Cross-entropy with a distribution between the student's and the teacher's, which moves to the teacher's."""

    schedule: methods.TAIDSchedule
    loss: MethodLoss

    def __call__(self, sides: Sides) -> Found:
        at = dataclasses.replace(self.loss, method=partial(self.loss.method, t=self.schedule.t))
        loss, found = at(sides)
        share = sides.mask.sum() / sides.normalizer  # of a part, so that the parts of a step add up to t
        return loss, found | {"t": self.schedule.t * share}

    def advance(self, sums: Mapping[str, float], step: int) -> None:
        self.schedule.update(sums["taid"], step)

    def state(self) -> dict[str, float | None]:
        return self.schedule.state_dict()

    def restore(self, state: Mapping[str, float | None]) -> None:
        self.schedule.load_state_dict(dict(state))


@dataclass(frozen=True)
class Losses:
    """The losses of a method.

    Attributes:
        by_author: one for each author whose tokens a step may have.
        schedule: of a parameter of theirs.
        of_teacher: whether they look at the teacher's distributions.
    """

    by_author: Mapping[Author, Loss]
    schedule: Schedule | None = None
    of_teacher: bool = True


def losses(settings: Settings, form: Form) -> Losses:
    """The losses of the settings' method.

    Raises:
        ValueError: parameters that do not fit.
    """
    match settings.method:
        case "divergence":
            return Losses(_mixed(_divergence(settings, form), settings, form))
        case "sinkd":
            mixed = _mixed(_divergence(settings, form), settings, form)[Author.TEXT]
            return Losses({Author.TEXT: Mix(((1.0, mixed), (settings.ot_weight, SinKD(settings))))})
        case "f_distill":
            return Losses(_f_distill(settings, form), of_teacher=settings.variant != "seqkd")
        case "distillm2":
            return Losses(_distillm2(settings, form))
        case "kdrl":
            return Losses({Author.STUDENT: _by_name(settings, form)})
        case "taid":
            taid = TAID(_taid_schedule(settings), _by_name(settings, form))
            return Losses(_mixed(taid, settings, form), taid)
        case _:
            return Losses(_mixed(_by_name(settings, form), settings, form))


def _divergence(settings: Settings, form: Form) -> DivergenceLoss:
    return DivergenceLoss(settings.divergence, form, settings.temperature, settings.scale_t2, settings.backend)


def _mixed(loss: Loss, settings: Settings, form: Form) -> dict[Author, Loss]:
    """(1 - w) loss + w cross-entropy on the text; on what the student wrote, the loss alone."""
    weight = settings.ce_weight
    mixed = Mix(((1 - weight, loss), (weight, CrossEntropy(form)))) if weight else loss
    return {Author.TEXT: mixed, Author.STUDENT: loss}


# The loss of a method, with its parameters; cross-entropy comes from outside.
_METHODS: dict[str, Callable[[Settings], Callable[..., Tensor]]] = {
    "gkd": lambda s: partial(methods.gkd, beta=s.beta, **_tempered(s)),
    "todi": lambda s: partial(methods.todi, kd_rate=1, beta=s.beta, **_tempered(s)),
    "akl": lambda s: partial(methods.akl, mu=s.mu, **_tempered(s)),
    "distillm": lambda s: partial(methods.distillm, variant=s.variant, alpha=s.alpha, **_tempered(s)),
    "taid": lambda s: partial(methods.taid, temperature=s.temperature),
    "bild": lambda s: partial(methods.bild, top_k=s.top_k, temperature=s.temperature),
    "dpkd": lambda s: partial(methods.dpkd, beta=s.beta),
    "sparse_logit_sampling": lambda s: partial(methods.sparse_logit_sampling, draws=s.draws, temperature=s.temperature),
    "kdrl": lambda s: partial(_by_ids, methods.kdrl, estimator=s.variant, temperature=s.temperature),
    "atkd": lambda s: partial(
        methods.atkd, hard_share=s.hard_share, easy_weight=s.easy_weight, temperature=s.temperature
    ),
}


def _by_name(settings: Settings, form: Form) -> MethodLoss:
    return MethodLoss(settings.method, _METHODS[settings.method](settings), _options(settings, form))


def _options(settings: Settings, form: Form) -> dict[str, Any]:
    """Of how a loss is computed, those that the method has."""
    options = {name: value for name, value in form.options().items() if name in settings.recipe.options}
    return options | ({"backend": settings.backend} if settings.recipe.backends else {})


def _tempered(settings: Settings) -> dict[str, Any]:
    return {"temperature": settings.temperature, "scale_t2": settings.scale_t2}


def _by_ids(
    method: Callable[..., Tensor], student: Tensor | Head, teacher: Tensor | Head, labels: Tensor, **options: Any
) -> Tensor:
    """A method whose tokens are not only there to count rows."""
    return method(student, teacher, labels, **options)


def _taid_schedule(settings: Settings) -> methods.TAIDSchedule:
    return methods.TAIDSchedule(settings.steps, settings.t_start, settings.t_end, settings.alpha, settings.beta)


_WRITERS = (Author.TEACHER, Author.STUDENT)


def _f_distill(settings: Settings, form: Form) -> dict[Author, Loss]:
    """Step-wise losses on what the teacher wrote, on what the student wrote, or half of each."""
    options = _options(settings, form)
    if settings.variant == "seqkd":
        return {Author.TEACHER: MethodLoss("cross_entropy", partial(_seqkd, temperature=settings.temperature), options)}
    if settings.variant == "engine":
        engine = partial(methods.engine, temperature=settings.temperature)
        return {Author.STUDENT: MethodLoss("engine", engine, options)}
    authors = {"kl": (Author.TEACHER,), "rkl": (Author.STUDENT,)}.get(settings.variant, _WRITERS)
    beta = {} if settings.beta is None else {"beta": settings.beta}
    method = partial(methods.f_distill, settings.variant, **beta, **_tempered(settings))
    return {author: Half("f_distill", method, author, options) for author in authors}


def _seqkd(student: Tensor | Head, teacher: None, labels: Tensor, **options: Any) -> Tensor:
    """Cross-entropy of what the teacher wrote."""
    return methods.seqkd(student, labels, **options)


def _distillm2(settings: Settings, form: Form) -> dict[Author, Loss]:
    """A skewed forward KL on what the teacher wrote, and a skewed reverse KL on what the student wrote."""
    method = partial(
        methods.distillm2, alpha=settings.alpha, beta=settings.beta, detached=settings.detached,
        temperature=settings.temperature,
    )  # fmt: skip
    return {author: Half("distillm2", method, author, _options(settings, form)) for author in _WRITERS}
