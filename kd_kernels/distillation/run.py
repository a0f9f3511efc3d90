"""One run, from its settings to its result."""

import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

import kd_kernels
from kd_kernels import Head
from kd_kernels.distillation import builtin, folder, models, origin, plot, report, text
from kd_kernels.distillation.batches import Batches
from kd_kernels.distillation.evaluation import evaluate, sample
from kd_kernels.distillation.files import replace_file, replace_folder, write_json
from kd_kernels.distillation.journal import Journal
from kd_kernels.distillation.loop import Plan, train
from kd_kernels.distillation.models import Pair
from kd_kernels.distillation.objective import Distillation, Form, LiveTeacher, Objective
from kd_kernels.distillation.settings import Settings
from kd_kernels.distillation.teacher_cache import TeacherCache


def distill(settings: Settings) -> dict[str, Any]:
    """Distils a teacher into a student; returns what `result.json` holds.

    Raises:
        ValueError: settings, data or models that do not fit together.
        OSError: a file or model that cannot be read.
        Stopped: on SIGINT or SIGTERM; the same settings with `resume` go on from there.
    """
    settings = settings.resolve()
    _check_loss(settings)
    models.keep_quiet()
    if settings.threads:
        torch.set_num_threads(settings.threads)
    documents = models.read_documents(settings)
    training, held_out = text.split(documents, settings.holdout)
    cache = TeacherCache(Path(settings.teacher_cache)) if settings.teacher_cache else None
    config = folder.describe(settings, text.digest(documents), cache and cache.digest)
    folder.check(settings, config)
    if cache:
        cache.check(origin.of_text(settings, documents))
    pair = models.load_pair(settings) if settings.teacher else None
    if cache and pair:
        cache.check(origin.of_teacher(pair.teacher, pair.tokenizer))
    out = folder.prepare(settings, config)  # last of all that may be refused
    if pair is None:
        pair = builtin.load_pair(settings, training, out / folder.TEACHER_WORK)
        if cache:
            cache.check(origin.of_teacher(pair.teacher, pair.tokenizer))
    blocks = text.blocks(training, pair.tokenizer, settings.seq_len)
    held_blocks = sample(text.blocks(held_out, pair.tokenizer, settings.seq_len), settings.eval_blocks)
    _announce(settings, pair, len(blocks), len(held_blocks))
    journal = Journal(out)
    _train(settings, pair, cache, blocks, held_blocks, journal)
    return _finish(settings, pair, journal.records(), out)


def _check_loss(settings: Settings) -> None:
    """Lets the loss refuse its arguments before anything slow begins."""
    try:
        row = torch.zeros(1, 2, device=settings.device)
        sides = row.bfloat16() if settings.bf16 else row, row.to(getattr(torch, settings.dtype))
        if not settings.logits:
            sides = [Head(side, torch.zeros(2, 2, device=settings.device)) for side in sides]
        kd_kernels.divergence(
            *sides, settings.divergence, temperature=settings.temperature, backend=settings.backend,
            **_form(settings).options(),
        )  # fmt: skip
    except (TypeError, RuntimeError, AssertionError) as error:  # torch asserts that it was built with CUDA
        raise ValueError(str(error)) from None


def _announce(settings: Settings, pair: Pair, blocks: int, held_blocks: int) -> None:
    sizes = " -> ".join(f"{model.num_parameters() / 1e6:.1f} M parameters" for model in (pair.teacher, pair.student))
    text_size = f"{blocks} + {held_blocks} held-out blocks of {settings.seq_len} tokens"
    print(f"{settings.kind}: {sizes}; {text_size}; {settings.device}; {settings.out}", file=sys.stderr)


def _form(settings: Settings) -> Form:
    budget = settings.memory_budget and settings.memory_budget << 20
    return Form(settings.logits, settings.chunk_tokens, budget)


def _objective(settings: Settings, teacher: PreTrainedModel, cache: TeacherCache | None) -> Objective:
    form = _form(settings)
    return Distillation(
        cache.source(settings.tail or "bucket", settings.device) if cache else LiveTeacher(teacher, form),
        settings.divergence,
        temperature=settings.temperature,
        scale_t2=settings.scale_t2,
        ce_weight=settings.ce_weight,
        backend=settings.backend,
        bf16=settings.bf16,
        form=form,
    )


def _train(
    settings: Settings, pair: Pair, cache: TeacherCache | None, blocks: Tensor, held_blocks: Tensor, journal: Journal
) -> None:
    plan = Plan(
        steps=settings.steps,
        lr=settings.lr,
        warmup=settings.warmup,
        weight_decay=settings.weight_decay,
        clip=settings.clip,
        seed=settings.seed,
        accumulate=settings.accumulate,
        save_every=settings.save_every,
        eval_every=settings.eval_every,
    )
    batches = Batches(blocks, settings.batch_size, settings.seed, settings.device)
    rows = settings.batch_size // settings.accumulate
    score = partial(evaluate, pair.student, pair.teacher, held_blocks, rows, settings.device, _form(settings))
    train(pair.student, _objective(settings, pair.teacher, cache), batches, plan, journal, "distill", score)


def _finish(settings: Settings, pair: Pair, records: list[dict[str, Any]], out: Path) -> dict[str, Any]:
    def save(temporary: Path) -> None:
        pair.student.save_pretrained(temporary)
        pair.tokenizer.save_pretrained(temporary)

    evaluations = [record["eval"] for record in records if "eval" in record]
    result = report.result(evaluations[0], evaluations[-1])
    replace_folder(out / folder.STUDENT, save)
    replace_file(out / folder.PLOT, partial(plot.draw, records, f"{settings.kind}, {settings.steps} steps"))
    write_json(out / folder.RESULT, result)
    return result
