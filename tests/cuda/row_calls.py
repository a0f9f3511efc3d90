"""Rows of the CUDA backend, called as tests compare them with the truth."""

from typing import NamedTuple

import torch
from torch import Tensor

# Blocks that share a row on chip, rows that are streamed, and what the backend takes by itself.
LAYOUTS = (1, 2, 4, 8, 0, None)


class Rows(NamedTuple):
    losses: Tensor  # (N,)
    gradient: Tensor  # (N, V)
    entropy: Tensor  # (2, N)


def rows_of(
    cuda, student, teacher, kind, *, weight=None, upstream=None, normalizer=None, temperature=(1.0, 1.0), scale=1.0,
    columns=None, gradient=None, **options,
) -> Rows:  # fmt: skip
    """What row_losses returns and writes, into NaN; into `gradient` where it is given, which may be `student`."""
    kernel = kind.kernel
    if gradient is None:
        gradient = torch.full(student.shape, torch.nan, dtype=student.dtype)
    entropy = torch.full((2, len(student)), torch.nan)
    losses, (gradient, entropy) = cuda.row_losses(
        student, teacher, weight, upstream, normalizer, kernel.family, list(kernel.params),
        [1 / t for t in temperature], scale, columns or student.shape[1], gradient, entropy, written=(10, 11),
        **options,
    )  # fmt: skip
    return Rows(losses, gradient, entropy)


def misaligned(x: Tensor, entries: int) -> Tensor:
    """The same rows, each beginning `entries` entries behind a multiple of 16 bytes."""
    per_vector = 16 // x.element_size()
    width = -(-(x.shape[1] + entries) // per_vector) * per_vector
    memory = torch.full((len(x) + 1, width), torch.nan, dtype=x.dtype)
    start = (-memory.data_ptr() // x.element_size()) % per_vector + entries
    view = memory.view(-1)[start : start + len(x) * width].view(len(x), width)[:, : x.shape[1]]
    view.copy_(x)
    return view
