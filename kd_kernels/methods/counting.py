"""Rows that count, and how their losses become one number."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kd_kernels import Head, arguments
from kd_kernels.reduction import reduce, sum_dtype
from kd_kernels.transport.arguments import choice

_OF_ROWS = ("mask", "labels", "ignore_index", "reduction", "normalizer")
_OF_THE_COMPUTATION = ("vocab", "backend", "chunk_tokens", "memory_budget")
REDUCTIONS = ("mean", "sum", "none", "sequence_mean")


@dataclass(frozen=True, eq=False)
class Counting:
    """What `mask`, `labels`, `ignore_index`, `reduction` and `normalizer` say of rows `[...]`.

    They are those of `divergence`. "sequence_mean" is one reduction more, of rows `[..., L]`: the mean over the rows of
    a sequence that count, and of that the mean over the sequences that have any.
    """

    shape: torch.Size
    weight: Tensor | None  # (N,)
    reduction: str
    normalizer: float | Tensor | None

    @classmethod
    def of(
        cls,
        rows: Tensor,  # [..., X]
        mask: Tensor | None = None,
        labels: Tensor | None = None,
        ignore_index: int = -100,
        reduction: str = "mean",
        normalizer: float | Tensor | None = None,
    ) -> "Counting":
        choice("reduction", reduction, REDUCTIONS)
        shape = rows.shape[:-1]
        normalizer = arguments.normalizer(normalizer, reduction, rows)
        weight = arguments.row_weights(mask, labels, ignore_index, rows, sum_dtype(rows.dtype))
        if reduction == "sequence_mean":
            if not shape:
                raise ValueError("reduction='sequence_mean' needs rows [..., L], got a single row")
            weight, reduction = _shares(weight, rows), "sum"
        return cls(shape, weight, reduction, normalizer)

    @property
    def options(self) -> dict[str, Any]:
        """Keywords of `divergence`."""
        mask = None if self.weight is None else self.weight.reshape(self.shape)
        return {"mask": mask, "reduction": self.reduction, "normalizer": self.normalizer}

    @property
    def rows(self) -> Tensor | None:
        """Those of non-zero weight, bool (N,); None for all."""
        return None if self.weight is None else self.weight != 0

    def reduce(self, losses: Tensor) -> Tensor:
        """Of losses of the rows, (N,) or `[...]`; those of rows that do not count may be anything."""
        result = reduce(losses.reshape(-1), self.weight, self.reduction, self.normalizer)
        return result.reshape(self.shape) if self.reduction == "none" else result


def split(
    student: Tensor | Head, options: dict[str, Any], computation: tuple[str, ...] = _OF_THE_COMPUTATION
) -> tuple[Counting, dict[str, Any]]:
    """Keywords of a method for the rows, and for how they are computed -> which rows count; the latter."""
    arguments.dense_side("student", student)
    unknown = [name for name in options if name not in (*_OF_ROWS, *computation)]
    if unknown:
        takes = ", ".join((*_OF_ROWS, *computation))
        raise TypeError(f"beside its own keywords the method takes {takes}; got {', '.join(unknown)}")
    of_rows = {name: options[name] for name in _OF_ROWS if name in options}
    counting = Counting.of(arguments.rows_of(student), **of_rows)
    return counting, {name: value for name, value in options.items() if name not in _OF_ROWS}


def row_options(student: Tensor | Head, options: dict[str, Any]) -> dict[str, Any]:
    """Keywords of a method -> those of `divergence`, which does not know "sequence_mean"."""
    counting, rest = split(student, options)
    return rest | counting.options


def _shares(weight: Tensor | None, rows: Tensor) -> Tensor:
    """(N,), of which the sum over the rows of a sequence is its share in the mean."""
    if weight is None:
        weight = torch.ones(rows.shape[:-1].numel(), dtype=sum_dtype(rows.dtype), device=rows.device)
    of_sequence = weight.reshape(rows.shape[:-1])
    lengths = (of_sequence != 0).sum(-1, keepdim=True)
    sequences = (lengths > 0).sum()
    return (of_sequence / (lengths.clamp(min=1) * sequences.clamp(min=1))).reshape(-1)
