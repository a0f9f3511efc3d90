"""The memory in which chunks of logits follow one another."""

from collections.abc import Sequence

import torch
from torch import Tensor

from kd_kernels.chunks.sides import Projection, Rows
from kd_kernels.chunks.task import Task
from kd_kernels.top_k import Entries

_ALIGNMENT = 64


def buffers(sides: Sequence[Rows | Projection | Entries], rows: int, columns: int | None, task: Task) -> list[Tensor]:
    """Room for a chunk of each side, rows by columns (None: all that a side has); empty where it needs none.

    All in one block: of blocks as large as these the CPU backend keeps one from call to call.
    """
    sizes = [
        rows * (side.width if columns is None else columns) if not isinstance(side, Entries) and side.buffered else 0
        for side in sides
    ]
    dtypes = [torch.uint8 if isinstance(side, Entries) else side.dtype for side in sides]
    sizes_in_bytes = [-(-n * dtype.itemsize // _ALIGNMENT) * _ALIGNMENT for n, dtype in zip(sizes, dtypes, strict=True)]
    parts = task.backend.workspace(sum(sizes_in_bytes), task.device).split(sizes_in_bytes)
    return [part.view(dtype)[:n] for part, dtype, n in zip(parts, dtypes, sizes, strict=True)]


def shaped(buffer: Tensor, rows: int, columns: int) -> Tensor:
    """The first entries of a buffer as a matrix; an empty one as it is."""
    return buffer[: rows * columns].view(rows, columns) if buffer.numel() else buffer
