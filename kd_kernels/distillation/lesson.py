"""What a run trains on, what it minimises and how it is scored, as its method wants them."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from kd_kernels.distillation import text, transport, transport_evaluation
from kd_kernels.distillation.batches import Batches
from kd_kernels.distillation.evaluation import evaluate, sample
from kd_kernels.distillation.models import Pair
from kd_kernels.distillation.objective import Distillation, Form, LiveTeacher, Objective
from kd_kernels.distillation.settings import Settings
from kd_kernels.distillation.spans import SpanBatches, Spans
from kd_kernels.distillation.teacher_cache import TeacherCache
from kd_kernels.distillation.transport import CrossTokenizer, SinKD


@dataclass(frozen=True)
class Lesson:
    """All that training wants beside the student and a plan.

    Attributes:
        batches: of the training text.
        objective: the loss.
        score: means over the held-out text.
        extent: how much text there is, in words.
    """

    batches: Batches
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
    form = form_of(settings)
    tokenizer = pair.teacher_tokenizer
    blocks, held = (text.blocks(documents, tokenizer, settings.seq_len) for documents in (training, held_out))
    held = sample(held, settings.eval_blocks)
    teacher = cache.source(settings.tail or "bucket", settings.device) if cache else LiveTeacher(pair.teacher, form)
    objective = Distillation(
        teacher,
        settings.divergence,
        temperature=settings.temperature,
        scale_t2=settings.scale_t2,
        ce_weight=settings.ce_weight,
        backend=settings.backend,
        bf16=settings.bf16,
        form=form,
    )
    sides = pair.student, pair.teacher, held, _rows(settings), settings.device
    score = partial(evaluate, *sides, form)
    if settings.method == "sinkd":
        compare = transport.sinkd(settings)
        objective = SinKD(objective, compare, settings.ot_weight)
        score = partial(transport_evaluation.with_sinkd, score, *sides, compare)
    return Lesson(
        Batches(blocks, settings.batch_size, settings.seed, settings.device),
        objective,
        score,
        f"{len(blocks)} + {len(held)} held-out blocks of {settings.seq_len} tokens",
    )


def _across_tokenizers(settings: Settings, pair: Pair, training: list[str], held_out: list[str]) -> Lesson:
    sizes = (model.config.get_text_config().vocab_size for model in (pair.student, pair.teacher))
    transport.try_out(settings, tuple(sizes))
    tokenizers = pair.student_tokenizer, pair.teacher_tokenizer
    spans, held = (Spans.of(documents, *tokenizers, settings.seq_len) for documents in (training, held_out))
    held = sample(held, settings.eval_blocks)
    compare = transport.comparison(settings)
    sides = pair.student, pair.teacher, held, _rows(settings), settings.device
    return Lesson(
        SpanBatches(spans, settings.batch_size, settings.seed, settings.device),
        CrossTokenizer(pair.teacher, compare, settings.method, settings.ot_weight, settings.bf16),
        partial(transport_evaluation.across_tokenizers, *sides, compare),
        f"{len(spans)} + {len(held)} held-out spans of at most {settings.seq_len} tokens",
    )


def form_of(settings: Settings) -> Form:
    """How the settings want predictions held."""
    budget = settings.memory_budget and settings.memory_budget << 20
    return Form(settings.whole_logits, settings.chunk_tokens, budget)


def _rows(settings: Settings) -> int:
    """Sequences that are in memory at a time."""
    return settings.batch_size // settings.accumulate
