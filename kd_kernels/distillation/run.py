"""One run, from its settings to its result."""

import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch

from kd_kernels.distillation import builtin, folder, models, origin, plot, report, text
from kd_kernels.distillation.files import replace_file, replace_folder, write_json
from kd_kernels.distillation.journal import Journal
from kd_kernels.distillation.lesson import Lesson, make_lesson, try_out
from kd_kernels.distillation.loop import Plan, train
from kd_kernels.distillation.models import Pair
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
    try_out(settings)
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

    def begin(pair: Pair) -> tuple[Pair, Lesson]:
        if cache:
            cache.check(origin.of_teacher(pair.teacher, pair.teacher_tokenizer))
        return pair, make_lesson(settings, pair, training, held_out, cache)

    begun = begin(models.load_pair(settings)) if settings.teacher else None
    out = folder.prepare(settings, config)  # last of all that may be refused
    pair, lesson = begun or begin(builtin.load_pair(settings, training, out / folder.TEACHER_WORK))
    _announce(settings, pair, lesson)
    journal = Journal(out)
    train(pair.student, lesson.objective, lesson.batches, _plan(settings), journal, "distill", lesson.score)
    return _finish(settings, pair, journal.records(), out)


def _announce(settings: Settings, pair: Pair, lesson: Lesson) -> None:
    sizes = " -> ".join(f"{model.num_parameters() / 1e6:.1f} M parameters" for model in (pair.teacher, pair.student))
    print(f"{settings.title}: {sizes}; {lesson.extent}; {settings.device}; {settings.out}", file=sys.stderr)


def _plan(settings: Settings) -> Plan:
    return Plan(
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


def _finish(settings: Settings, pair: Pair, records: list[dict[str, Any]], out: Path) -> dict[str, Any]:
    def save(temporary: Path) -> None:
        pair.student.save_pretrained(temporary)
        pair.student_tokenizer.save_pretrained(temporary)

    evaluations = [record["eval"] for record in records if "eval" in record]
    result = report.result(evaluations[0], evaluations[-1])
    replace_folder(out / folder.STUDENT, save)
    replace_file(out / folder.PLOT, partial(plot.draw, records, f"{settings.title}, {settings.steps} steps"))
    write_json(out / folder.RESULT, result)
    return result
