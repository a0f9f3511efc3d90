"""What a teacher writes for the blocks of a text: drawn once, kept in the cache, and used by every run that asks.

A folder of the cache holds one tensor, `[n, L + 1]` int32: of each block the prompt and what the teacher made of it,
padded after the end of a text, and UNDRAWN in the rows that no run has asked for yet. The name of the folder is a hash
of all that the text depends on: the teacher's weights, the blocks and how tokens are drawn. A row's random numbers
depend on nothing but the row.
"""

import dataclasses
import hashlib
import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from kd_kernels.distillation import cache, origin
from kd_kernels.distillation.batches import derive_seed
from kd_kernels.distillation.models import Pair
from kd_kernels.distillation.sampling import Writer, uniform
from kd_kernels.distillation.settings import Settings

FILE, NAME = "samples.safetensors", "blocks"
UNDRAWN = -1  # no token has this id, nor has padding


def load_or_draw(settings: Settings, pair: Pair, blocks: Tensor, writer: Writer, wanted: list[int]) -> Tensor:
    """What the teacher wrote, `[n, L + 1]`, with at least the wanted rows.

    Args:
        settings: of the run.
        pair: its models.
        blocks: `[n, L + 1]`, of the training text.
        writer: how the teacher writes.
        wanted: rows that the run needs.
    """
    folder = cache.root(settings.cache_dir) / f"samples-{_key(settings, pair, blocks, writer)}"
    samples = _load(folder, blocks)
    missing = [row for row in wanted if samples[row, 0] == UNDRAWN]
    if missing:
        print(f"the teacher writes {len(missing)} blocks, which are kept in {folder}", file=sys.stderr)
        samples[missing] = _draw(settings, pair, blocks, writer, missing)

        def save(temporary: Path) -> None:
            others = _load(folder, blocks)  # another run may have drawn meanwhile
            merged = torch.where(samples[:, :1] == UNDRAWN, others, samples)
            save_file({NAME: merged}, temporary / FILE)

        cache.publish(folder, save, replace=True)
    return samples


def _load(folder: Path, blocks: Tensor) -> Tensor:
    if not folder.exists():
        return torch.full(blocks.shape, UNDRAWN, dtype=torch.int32)
    if not cache.intact(folder):
        print(f"{folder} is damaged; the teacher writes again", file=sys.stderr)
        return torch.full(blocks.shape, UNDRAWN, dtype=torch.int32)
    return load_file(folder / FILE)[NAME]


def _draw(settings: Settings, pair: Pair, blocks: Tensor, writer: Writer, rows: list[int]) -> Tensor:
    """`[len(rows), L + 1]` int32."""
    columns = blocks.shape[1] - writer.sampling.prompt
    written = []
    with tqdm(desc="teacher writes", total=len(rows), unit="block", disable=None, dynamic_ncols=True) as bar:
        for start in range(0, len(rows), settings.batch_size):
            some = rows[start : start + settings.batch_size]
            numbers = uniform(columns, [derive_seed("teacher", row) for row in some], settings.device)
            given = blocks[some].to(settings.device, torch.int64)
            written.append(writer.carry_on(pair.teacher, given, numbers).to("cpu", torch.int32))
            bar.update(len(some))
    return torch.cat(written)


def _key(settings: Settings, pair: Pair, blocks: Tensor, writer: Writer) -> str:
    """A name for all that the samples depend on."""
    made_from = origin.of_teacher(pair.teacher, pair.teacher_tokenizer) | {
        "blocks": hashlib.sha256(blocks.numpy().tobytes()).hexdigest(),
        "dtype": settings.dtype,
        "writer": dataclasses.asdict(writer),
    }
    return hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()[:16]
