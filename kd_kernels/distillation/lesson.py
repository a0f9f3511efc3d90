"""What a run trains on, what it minimises and how it is scored, as its method wants them."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from kd_kernels import Head
from kd_kernels.distillation import cross_tokenizer, teacher_samples, text, transport_evaluation
from kd_kernels.distillation.batches import Batches
from kd_kernels.distillation.cross_tokenizer import CrossTokenizer
from kd_kernels.distillation.evaluation import evaluate, sample
from kd_kernels.distillation.loop import Batches as StepSource
from kd_kernels.distillation.losses import Sides, SinKD, losses
from kd_kernels.distillation.models import Pair
from kd_kernels.distillation.objective import Distillation, Objective
from kd_kernels.distillation.predictions import Form, LiveTeacher
from kd_kernels.distillation.sampling import Sampling, Writer
from kd_kernels.distillation.settings import Settings
from kd_kernels.distillation.spans import SpanBatches, Spans
from kd_kernels.distillation.steps import Author, Steps, rows
from kd_kernels.distillation.teacher_cache import TeacherCache


@dataclass(frozen=True)
class Lesson:
    """All that training wants beside the student and a plan.

    Attributes:
        batches: of the training text.
        objective: the loss.
        score: means over the held-out text.
        extent: how much text there is, in words.
    """

    batches: StepSource
    objective: Objective
    score: Callable[[], dict[str, float]]
    extent: str


def make_lesson(
    settings: Settings, pair: Pair, training: list[str], held_out: list[str], cache: TeacherCache | None
) -> Lesson:
    """The lesson of a run.

    Args:
        settings: of the run.
        pair: its models.
        training: documents to train on.
        held_out: documents to score on.
        cache: predictions of the teacher to train from.
    """
    if settings.recipe.cross_tokenizer:
        return _across_tokenizers(settings, pair, training, held_out)
    form = _form(settings)
    blocks, held = (
        text.blocks(documents, pair.teacher_tokenizer, settings.seq_len) for documents in (training, held_out)
    )
    held = sample(held, settings.eval_blocks)
    teacher = cache.source(settings.tail or "bucket", settings.device) if cache else LiveTeacher(pair.teacher, form)
    found = losses(settings, form)
    sides = pair.student, pair.teacher, held, _rows(settings), settings.device
    score = partial(evaluate, *sides, form)
    if settings.method == "sinkd":
        score = partial(transport_evaluation.with_sinkd, score, *sides, SinKD(settings))
    return Lesson(
        _steps(settings, pair, blocks, frozenset(found.by_author)),
        Distillation(teacher, found, form),
        score,
        f"{len(blocks)} + {len(held)} held-out blocks of {settings.seq_len} tokens",
    )


def _steps(settings: Settings, pair: Pair, blocks: Tensor, authors: frozenset[Author]) -> Steps:
    """What the steps see: text, and what models make of its beginnings."""
    batches = Batches(blocks, settings.batch_size, settings.seed, settings.device)
    if not settings.samples:
        return Steps(batches)
    writer = Writer(
        Sampling(settings.prompt_len, settings.sample_temperature, settings.sample_top_k, settings.sample_top_p),
        tokens=max(pair.teacher_tokenizer.get_vocab().values()) + 1,
        end=pair.teacher_tokenizer.eos_token_id,
        whole_logits=settings.logits,
        bf16=settings.bf16,
    )
    written = None
    if Author.TEACHER in authors:
        wanted = rows(batches, range(settings.steps))
        written = teacher_samples.load_or_draw(settings, pair, blocks, writer, wanted)
    always = authors if settings.recipe.samples else frozenset({Author.TEXT})
    return Steps(batches, always, settings.on_policy or 0.0, writer, written, settings.seed, parts=settings.accumulate)


def _across_tokenizers(settings: Settings, pair: Pair, training: list[str], held_out: list[str]) -> Lesson:
    sizes = (model.config.get_text_config().vocab_size for model in (pair.student, pair.teacher))
    cross_tokenizer.try_out(settings, tuple(sizes))
    tokenizers = pair.student_tokenizer, pair.teacher_tokenizer
    spans, held = (Spans.of(documents, *tokenizers, settings.seq_len) for documents in (training, held_out))
    held = sample(held, settings.eval_blocks)
    compare = cross_tokenizer.comparison(settings)
    sides = pair.student, pair.teacher, held, _rows(settings), settings.device
    return Lesson(
        SpanBatches(spans, settings.batch_size, settings.seed, settings.device),
        CrossTokenizer(pair.teacher, compare, settings.method, settings.ot_weight, settings.bf16),
        partial(transport_evaluation.across_tokenizers, *sides, compare),
        f"{len(spans)} + {len(held)} held-out spans of at most {settings.seq_len} tokens",
    )


def try_out(settings: Settings) -> None:
    """Lets the losses refuse their arguments, before anything slow begins.

    Raises:
        ValueError: an argument that does not fit.
    """
    size = max(2, settings.top_k or 0)
    try:
        if settings.recipe.cross_tokenizer:
            cross_tokenizer.try_out(settings, (size, size))
            return
        labels = torch.zeros(1, 1, dtype=torch.int64, device=settings.device)
        dtypes = torch.bfloat16 if settings.bf16 else torch.float32, getattr(torch, settings.dtype)
        shape = (1, 1, size) if settings.whole_logits else (1, 1, 2)
        sides = [torch.zeros(shape, dtype=dtype, device=settings.device) for dtype in dtypes]
        if not settings.whole_logits:
            sides = [Head(side, torch.zeros(size, 2, device=settings.device)) for side in sides]
        for loss in losses(settings, _form(settings)).by_author.values():
            loss(Sides(*sides, labels, 1.0))
    except (TypeError, RuntimeError, AssertionError) as error:  # torch asserts that it was built with CUDA
        raise ValueError(str(error)) from None


def _form(settings: Settings) -> Form:
    """How the settings want predictions held."""
    budget = settings.memory_budget and settings.memory_budget << 20
    return Form(settings.whole_logits, settings.chunk_tokens, budget, settings.bf16)


def _rows(settings: Settings) -> int:
    """Sequences that are in memory at a time."""
    return settings.batch_size // settings.accumulate
