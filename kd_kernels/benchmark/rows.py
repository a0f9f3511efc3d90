"""Target `rows`: the divergence between two tensors of logits [N, V], mean over the rows."""

from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from kd_kernels.benchmark import providers
from kd_kernels.benchmark.case import Case, Problem, Provider
from kd_kernels.divergences import KINDS, Divergence
from kd_kernels.testing.budget import allowed_error
from kd_kernels.testing.inputs import far_pair, near_pair
from kd_kernels.testing.truth import eager, truth

# Different rows in the inputs, which repeat them: the truth about these few is the truth about every row.
_DISTINCT_ROWS = 8


@dataclass(frozen=True, kw_only=True)
class RowsCase(Case):
    target: ClassVar[str] = "rows"
    divergence: Divergence
    rows: int
    vocab: int
    logit_scale: float = 3.0
    near: bool = False

    @property
    def kind(self) -> str:
        return self.divergence.name

    @property
    def shape(self) -> dict[str, int]:
        return {"rows": self.rows, "vocab": self.vocab}

    @property
    def gradient_bytes(self) -> int:
        return self.rows * self.vocab * self.dtype.itemsize

    @property
    def bytes_moved(self) -> int:
        """Both logits are read and the gradient is written."""
        return (3 if self.backward else 2) * self.gradient_bytes

    def make(self) -> Problem:
        distinct = min(self.rows, _DISTINCT_ROWS)
        pair = near_pair if self.near else far_pair
        logits = pair(distinct, self.vocab, self.dtype, scale=self.logit_scale, seed=self.seed)
        student, teacher = (x.to(self.device) for x in logits)
        exact, rounded = truth(student, teacher, self.divergence), eager(student, teacher, self.divergence)

        repeat = torch.arange(self.rows, device=self.device) % distinct
        student, teacher = student[repeat].requires_grad_(self.backward), teacher[repeat]
        loss, gradient = exact.losses[repeat].mean(), exact.gradient / self.rows
        loss_budget = allowed_error(exact.losses, rounded.losses)
        gradient_budget = allowed_error(gradient, rounded.gradient / self.rows)

        def complaint(actual: Tensor) -> str | None:
            wrong = _off("the loss", (actual.detach() - loss).abs(), loss_budget)
            if wrong or not self.backward:
                return wrong
            if student.grad is None:
                return "there is no gradient"
            parts = student.grad.split(distinct)
            errors = torch.stack([(part - gradient[: len(part)]).abs().max() for part in parts])
            return _off("the gradient", errors.max(), gradient_budget)

        return Problem((student, teacher), complaint)

    def providers(self, names: Sequence[str], backends: Sequence[str]) -> list[Provider]:
        return providers.of_rows(self, names, backends)


def _off(what: str, error: Tensor, budget: float) -> str | None:
    # A NaN is not within any budget.
    return None if error <= budget else f"{what} is off by {error:.2g} where {budget:.2g} is allowed"


def cases(args: Namespace) -> list[RowsCase]:
    directions = {"forward": [False], "forward+backward": [True], "both": [False, True]}
    return [
        RowsCase(
            divergence=KINDS[kind](), rows=args.rows, vocab=args.vocab, dtype=getattr(torch, dtype),
            device=args.device, backward=backward, logit_scale=args.logit_scale, near=args.near, seed=args.seed,
        )
        for dtype in args.dtype
        for backward in directions[args.direction]
        for kind in args.kind
    ]  # fmt: skip
