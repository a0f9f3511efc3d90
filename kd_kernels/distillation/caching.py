"""`kd-kernels cache-teacher`: a teacher's predictions for the training text of a run, into a file."""

import dataclasses
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

import kd_kernels
from kd_kernels import Head
from kd_kernels.distillation import builtin, models, origin, teacher_cache_file, text
from kd_kernels.distillation.batches import Batch
from kd_kernels.distillation.files import replace_file
from kd_kernels.distillation.predictions import Form, logits
from kd_kernels.distillation.settings import CacheSettings
from kd_kernels.distillation.teacher_cache_file import Layout

CHUNK = 64  # rows of logits that are made, ranked and forgotten at a time


def cache_teacher(settings: CacheSettings) -> Path:
    """Runs the teacher over the blocks that `kd-kernels distill` trains on; returns the file.

    Raises:
        ValueError: settings, data or models that do not fit together.
        OSError: a file or model that cannot be read or written, or no space for the cache.
    """
    settings = settings.resolve()
    models.keep_quiet()
    _check(settings)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    documents = models.read_documents(settings)
    training, _ = text.split(documents, settings.holdout)
    out = Path(settings.out)
    if settings.teacher:
        teacher, tokenizer = models.load_teacher(settings.teacher, settings), models.load_tokenizer(settings.teacher)
    else:
        teacher, tokenizer = builtin.load_teacher(settings, training, out.with_name(out.name + ".teacher"))
    blocks = text.blocks(training, tokenizer, settings.seq_len)
    made_from = origin.of_text(settings, documents) | origin.of_teacher(teacher, tokenizer)
    k = min(settings.top_k, made_from["vocabulary"])
    made_from |= {"top_k": k, "teacher": settings.teacher or "built in"}
    if k == made_from["vocabulary"]:
        compute = partial(_all, teacher)
        layout = {"logits": (compute(_batch(blocks, [0], settings))["logits"].dtype, (*_positions(blocks), k))}
    else:
        if not settings.logits:
            models.check_head(teacher)
        compute = partial(_top, teacher, k, settings.temperature, Form(settings.logits))
        layout = _layout(_positions(blocks), k, made_from["vocabulary"], getattr(torch, settings.precision))
    out.parent.mkdir(parents=True, exist_ok=True)
    _check_space(out, teacher_cache_file.size(layout))
    pieces = _pieces(compute, blocks, settings)
    try:
        replace_file(out, lambda path: teacher_cache_file.write(path, layout, made_from, pieces))
    except BaseException:
        out.with_name(out.name + ".tmp").unlink(missing_ok=True)
        raise
    return out


def _check(settings: CacheSettings) -> None:
    """Refuses what can be refused before anything slow begins."""
    if Path(settings.out).exists() and not settings.overwrite:
        raise ValueError(f"{settings.out} is there already: pass --overwrite, or another --out")
    row = torch.zeros(1, 2)
    kd_kernels.divergence(row, row, temperature=settings.temperature)


def _check_space(out: Path, size: int) -> None:
    free = shutil.disk_usage(out.parent).free
    if size > free:
        raise ValueError(f"{out} needs {size / 1e9:.1f} GB, {free / 1e9:.1f} are free: choose a smaller --top-k")


def _positions(blocks: Tensor) -> tuple[int, int]:
    return len(blocks), blocks.shape[1] - 1


def _layout(positions: tuple[int, int], k: int, vocabulary: int, precision: torch.dtype) -> Layout:
    ids = torch.uint16 if vocabulary <= 1 << 16 else torch.int32
    return {
        "total": (torch.float32, positions),
        "ids": (ids, (*positions, k)),
        "logprobs": (precision, (*positions, k)),
    }


def _pieces(
    compute: Callable[[Batch], dict[str, Tensor]], blocks: Tensor, settings: CacheSettings
) -> Iterator[tuple[int, dict[str, Tensor]]]:
    """What the teacher says, a batch at a time."""
    with tqdm(desc="cache-teacher", total=len(blocks), unit="block", disable=None, dynamic_ncols=True) as bar:
        for start in range(0, len(blocks), settings.batch_size):
            # The last batch is filled up: matrix products of another shape may round in another way.
            rows = [row % len(blocks) for row in range(start, start + settings.batch_size)]
            fresh = min(settings.batch_size, len(blocks) - start)
            yield start, {name: x[:fresh] for name, x in compute(_batch(blocks, rows, settings)).items()}
            bar.update(fresh)


def _batch(blocks: Tensor, rows: list[int], settings: CacheSettings) -> Batch:
    return Batch.of(blocks[rows], settings.device)


@torch.no_grad()
def _all(teacher: nn.Module, batch: Batch) -> dict[str, Tensor]:
    return {"logits": logits(teacher, batch)}


@torch.no_grad()
def _top(teacher: nn.Module, k: int, temperature: float, form: Form, batch: Batch) -> dict[str, Tensor]:
    """The K likeliest entries at each position, at the teacher's temperature."""
    prediction = form.predict(teacher, batch)
    rows = prediction.hidden if isinstance(prediction, Head) else prediction
    found = [_rank(prediction, part, k, temperature) for part in rows.flatten(0, 1).split(CHUNK)]
    names = ("total", "ids", "logprobs")
    return {
        name: torch.cat(x).unflatten(0, rows.shape[:2]) for name, x in zip(names, zip(*found, strict=True), strict=True)
    }


def _rank(prediction: Tensor | Head, rows: Tensor, k: int, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """(total [C], ids [C, K], log-probabilities [C, K]) of some rows, hidden states or logits."""
    x = dataclasses.replace(prediction, hidden=rows).logits() if isinstance(prediction, Head) else rows
    x = x.float() if temperature == 1 else x.float() / temperature
    values, ids = x.topk(k)
    logprobs = values - x.logsumexp(-1, keepdim=True)
    return logprobs.logsumexp(-1), ids, logprobs
