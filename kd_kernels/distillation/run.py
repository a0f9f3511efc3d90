"""One run, from its settings to its result."""

import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

import kd_kernels
from kd_kernels.distillation import builtin, folder, models, plot, report, text
from kd_kernels.distillation.batches import Batches
from kd_kernels.distillation.evaluation import evaluate, sample
from kd_kernels.distillation.files import replace_file, replace_folder, write_json
from kd_kernels.distillation.journal import Journal
from kd_kernels.distillation.loop import Plan, train
from kd_kernels.distillation.models import Pair
from kd_kernels.distillation.objective import LogitDistillation, Objective
from kd_kernels.distillation.settings import Settings


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
    documents = _documents(settings)
    training, held_out = text.split(documents, settings.holdout)
    config = folder.describe(settings, text.digest(documents))
    folder.check(settings, config)
    pair = models.load_pair(settings) if settings.teacher else None
    out = folder.prepare(settings, config)  # last of all that may be refused
    pair = pair or builtin.load_pair(settings, training, out / folder.TEACHER_WORK)
    blocks = text.blocks(training, pair.tokenizer, settings.seq_len)
    held_blocks = sample(text.blocks(held_out, pair.tokenizer, settings.seq_len), settings.eval_blocks)
    _announce(settings, pair, len(blocks), len(held_blocks))
    journal = Journal(out)
    _train(settings, pair, blocks, held_blocks, journal)
    return _finish(settings, pair, journal.records(), out)


def _check_loss(settings: Settings) -> None:
    """Lets the loss refuse its arguments before anything slow begins."""
    try:
        row = torch.zeros(1, 2, device=settings.device)
        kd_kernels.divergence(
            row.bfloat16() if settings.bf16 else row, row.to(getattr(torch, settings.dtype)), settings.divergence,
            temperature=settings.temperature, backend=settings.backend,
        )  # fmt: skip
    except (TypeError, RuntimeError, AssertionError) as error:  # torch asserts that it was built with CUDA
        raise ValueError(str(error)) from None


def _documents(settings: Settings) -> list[str]:
    if settings.data is None:
        return text.builtin()
    tokenizer = models.load_tokenizer(settings.teacher) if settings.teacher else None
    return text.read(Path(settings.data), partial(models.render_chat, tokenizer))


def _announce(settings: Settings, pair: Pair, blocks: int, held_blocks: int) -> None:
    sizes = " -> ".join(f"{model.num_parameters() / 1e6:.1f} M parameters" for model in (pair.teacher, pair.student))
    text_size = f"{blocks} + {held_blocks} held-out blocks of {settings.seq_len} tokens"
    print(f"{settings.kind}: {sizes}; {text_size}; {settings.device}; {settings.out}", file=sys.stderr)


def _objective(settings: Settings, teacher: PreTrainedModel) -> Objective:
    return LogitDistillation(
        teacher,
        settings.divergence,
        temperature=settings.temperature,
        scale_t2=settings.scale_t2,
        ce_weight=settings.ce_weight,
        backend=settings.backend,
        bf16=settings.bf16,
    )


def _train(settings: Settings, pair: Pair, blocks: Tensor, held_blocks: Tensor, journal: Journal) -> None:
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
    score = partial(evaluate, pair.student, pair.teacher, held_blocks, rows, settings.device)
    train(pair.student, _objective(settings, pair.teacher), batches, plan, journal, "distill", score)


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
