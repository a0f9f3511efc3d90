"""What a loss over chunks is made of, beside its two sides."""

from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor


@dataclass(frozen=True)
class Task:
    """The row kernels' arguments that all chunks share; `weight` and `upstream` have one entry per row."""

    family: str
    params: list[float]
    inverse_temperatures: tuple[float, float]  # of what the sides give: their rates are part of it
    scale: float
    columns: int
    weight: Tensor | None
    upstream: Tensor | None
    normalizer: Tensor | None
    backend: ModuleType
    rows: int
    real: torch.dtype  # of losses, sums and row weights
    device: torch.device

    def losses(self, student: Tensor, teacher: Tensor, rows: slice, gradient: Tensor, entropy: Tensor) -> Tensor:
        """Losses (C,) of a chunk of rows of dense logits, gradient and entropies where they are wanted."""
        return self.backend.row_losses(
            student, teacher, self.rows_of(self.weight, rows), self.rows_of(self.upstream, rows), self.normalizer,
            self.family, self.params, self.inverse_temperatures, self.scale, self.columns, gradient, entropy,
        )  # fmt: skip

    @staticmethod
    def rows_of(x: Tensor | None, rows: slice) -> Tensor | None:
        return None if x is None else x[rows]
