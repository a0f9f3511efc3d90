"""Where a chunk of logits comes from: a tensor that holds them, or hidden states and an LM head.

The row kernels see `x` and a temperature. A head's scale is part of that temperature, and so is its softcap c, for
which x = tanh(scale (hidden W^T + bias) / c): nothing is rounded in between.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kd_kernels.chunks.products import project


@dataclass(frozen=True)
class Rows:
    """Logits that exist: all rows, or those of an index."""

    logits: Tensor  # (N, V)
    index: Tensor | None = None  # (M,)
    rate: float = 1.0

    @property
    def dtype(self) -> torch.dtype:
        return self.logits.dtype

    @property
    def width(self) -> int:
        """Entries of a row of x."""
        return self.logits.shape[1]

    @property
    def buffered(self) -> bool:
        """Whether a chunk needs memory of its own."""
        return self.index is not None

    def clear(self, rows: Tensor) -> "Rows":
        """As it is: logits of rows that do not count are not read."""
        return self

    def select(self, rows: Tensor) -> "Rows":
        return replace(self, index=rows)

    def chunk(self, rows: slice, columns: slice, buffer: Tensor) -> Tensor:
        """x of some rows and columns; in `buffer` if buffered."""
        if self.index is None:
            return self.logits[rows, columns]
        return torch.index_select(self.logits[:, columns], 0, self.index[rows], out=buffer)


@dataclass(frozen=True)
class Projection:
    """x = gain (hidden weight^T + bias) or its tanh, over the columns that count; logits are x rate."""

    hidden: Tensor  # (N, H)
    weight: Tensor  # (n, H)
    bias: Tensor | None  # (n,)
    gain: float
    rate: float
    softcap: bool

    @classmethod
    def of(
        cls, hidden: Tensor, weight: Tensor, bias: Tensor | None, transform: list[float], columns: int
    ) -> "Projection":
        """transform: scale, softcap (0: none). Products run in the dtype of `hidden`."""
        scale, softcap = transform
        weight = weight[:columns].to(hidden.dtype)
        bias = None if bias is None else bias[:columns].to(hidden.dtype)
        gain, rate = (scale / softcap, softcap) if softcap else (1.0, scale)
        return cls(hidden, weight, bias, gain, rate, bool(softcap))

    @property
    def dtype(self) -> torch.dtype:
        return self.hidden.dtype

    @property
    def width(self) -> int:
        return self.weight.shape[0]

    @property
    def buffered(self) -> bool:
        return True

    def clear(self, rows: Tensor) -> "Projection":
        """With 0 in the hidden states of these rows: not even NaN times a gradient of 0 shows."""
        return replace(self, hidden=self.hidden.masked_fill(rows[:, None], 0))

    def select(self, rows: Tensor) -> "Projection":
        return replace(self, hidden=self.hidden.index_select(0, rows))

    def chunk(self, rows: slice, columns: slice, buffer: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias[columns]
        project(self.hidden[rows], self.weight[columns], bias, self.gain, buffer)
        return buffer.tanh_() if self.softcap else buffer
