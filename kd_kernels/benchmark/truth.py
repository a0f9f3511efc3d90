"""What is right, for inputs of which a few rows are distinct: the truth about these is the truth about all."""

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from kd_kernels.divergences import Divergence
from kd_kernels.testing.budget import allowed_error
from kd_kernels.testing.truth import eager, truth

DISTINCT_ROWS = 8

_COLUMNS = 8192  # of the vocabulary at a time: no float64 tensor as large as a head, no [N, V] at all


def off(what: str, error: Tensor, budget: float) -> str | None:
    # A NaN is not within any budget.
    return None if error <= budget else f"{what} is off by {error:.2g} where {budget:.2g} is allowed"


class HeadsTruth:
    """Loss, mean over the rows that count, and gradients of hidden states and weight.

    With g_i the gradient of the loss to the logits of distinct row i, and n_i how many rows that count repeat it,
        dhidden_i = g_i W,    dW = sum_i n_i g_i^T hidden_i.
    Budgets are those of plain PyTorch in the dtype of the inputs, with all rows in the sum of dW.
    """

    def __init__(
        self,
        kind: Divergence,
        hidden: Tensor,  # (D, H) distinct rows
        weight: Tensor,  # (V, H)
        teacher_hidden: Tensor,  # (D, H')
        teacher_weight: Tensor,  # (V, H')
        repeat: Tensor,  # (N,) which of the D
        mask: Tensor | None,  # (N,)
    ) -> None:
        self._hidden, self._weight, self._repeat, self._mask = hidden, weight, repeat, mask
        self._counted = repeat if mask is None else repeat[mask]
        n = len(self._counted)
        self._counts = torch.bincount(self._counted, minlength=len(hidden)).double()
        exact = truth(_logits(hidden, weight), _logits(teacher_hidden, teacher_weight), kind)
        rounded = eager(F.linear(hidden, weight), F.linear(teacher_hidden, teacher_weight), kind)
        self._loss = (exact.losses * self._counts).sum() / n
        self._loss_budget = allowed_error(exact.losses, rounded.losses)
        self._gradient = exact.gradient / n  # (D, V)
        self._rounded_gradient = rounded.gradient / n

    def complaint_of_loss(self, loss: Tensor) -> str | None:
        return off("the loss", (loss.detach() - self._loss).abs(), self._loss_budget)

    def complaint_of_hidden(self, gradient: Tensor) -> str | None:
        pairs = zip(self._gradient.split(_COLUMNS, 1), self._weight.split(_COLUMNS), strict=True)
        exact = sum(g @ w.double() for g, w in pairs)
        budget = allowed_error(exact, self._rounded_gradient @ self._weight)
        error = (gradient - exact[self._repeat]).abs()
        if self._mask is not None:
            error = torch.where(self._mask[:, None], error, gradient.abs())
        return off("the gradient of the hidden states", error.max(), budget)

    def complaint_of_weight(self, gradient: Tensor) -> str | None:
        rows = self._hidden[self._counted]
        weighted = self._hidden.double() * self._counts[:, None]
        for begin in range(0, len(gradient), _COLUMNS):
            block = slice(begin, begin + _COLUMNS)
            exact = self._gradient[:, block].t() @ weighted
            rounded = self._rounded_gradient[:, block][self._counted].t() @ rows
            wrong = off(
                "the gradient of the weight", (gradient[block] - exact).abs().max(), allowed_error(exact, rounded)
            )
            if wrong:
                return wrong
        return None


def _logits(hidden: Tensor, weight: Tensor) -> Tensor:
    """In float64, from the very numbers the tensors hold."""
    return torch.cat([F.linear(hidden.double(), part.double()) for part in weight.split(_COLUMNS)], 1)
