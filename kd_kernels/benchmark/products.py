"""The matrix products that a loss from hidden states and LM heads cannot do without, and nothing else."""

import torch
from torch import Tensor

# Logits of all rows in one product where they fit, else in chunks of so many rows.
_WHOLE_BYTES = 4 << 30
_CHUNK_ROWS = 1024


class Products:
    """hidden W^T and hidden' W'^T, and from a gradient G [N, V] of the logits G W and G^T hidden.

    All in the dtype of the hidden states, into memory that is there before; the student's logits stand for G.
    """

    def __init__(
        self,
        hidden: Tensor,  # (N, H)
        weight: Tensor,  # (V, H)
        teacher_hidden: Tensor,  # (N, H')
        teacher_weight: Tensor,  # (V, H')
        *,
        backward: bool,
        frozen_head: bool,
    ) -> None:
        self._hidden, self._weight, self._teacher = hidden.detach(), weight.detach(), (teacher_hidden, teacher_weight)
        n, vocab = len(hidden), len(weight)
        self._chunk = n if n * vocab * hidden.element_size() <= _WHOLE_BYTES else _CHUNK_ROWS
        self._logits = hidden.new_empty(self._chunk, vocab)
        self._hidden_gradient = torch.empty_like(self._hidden) if backward else None
        self._weight_gradient = torch.empty_like(self._weight) if backward and not frozen_head else None

    def __call__(self) -> None:
        teacher_hidden, teacher_weight = self._teacher
        for begin in range(0, len(self._hidden), self._chunk):
            rows = slice(begin, begin + self._chunk)
            hidden = self._hidden[rows]
            logits = self._logits[: len(hidden)]
            torch.mm(teacher_hidden[rows], teacher_weight.t(), out=logits)
            torch.mm(hidden, self._weight.t(), out=logits)
            if self._hidden_gradient is not None:
                torch.mm(logits, self._weight, out=self._hidden_gradient[rows])
            if self._weight_gradient is not None:
                out = self._weight_gradient
                torch.addmm(out, logits.t(), hidden, beta=0 if begin == 0 else 1, out=out)
