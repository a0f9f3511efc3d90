"""Target `rows`: the divergence between two tensors of logits [N, V], mean over the rows."""

from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from kd_kernels.benchmark import eager as by_hand
from kd_kernels.benchmark import peers, providers
from kd_kernels.benchmark.case import DivergenceCase, Floor, Loss, Problem, Provider, divergence_settings
from kd_kernels.benchmark.truth import DISTINCT_ROWS, off
from kd_kernels.divergences import KINDS as DIVERGENCES
from kd_kernels.losses import divergence
from kd_kernels.testing.budget import allowed_error
from kd_kernels.testing.inputs import far_pair, near_pair
from kd_kernels.testing.truth import eager, truth

KINDS = tuple(DIVERGENCES)
ROWS = 64
DTYPE = "bf16"
OPTIONS = ("near",)


@dataclass(frozen=True, kw_only=True)
class RowsCase(DivergenceCase):
    target: ClassVar[str] = "rows"
    groups: ClassVar[tuple[str, ...]] = ("rows",)
    floor_name: ClassVar[str] = "floor"
    work_unit: ClassVar[str] = "GB"
    legend: ClassVar[str] = """\
floor: moving what must be moved (logits, gradient) at the bandwidth of a copy measured in the same rounds."""
    near: bool = False

    @property
    def sizes(self) -> dict[str, int]:
        return {"rows": self.rows, "vocab": self.vocab}

    @property
    def work(self) -> int:
        """Both logits are read and the gradient is written."""
        return (3 if self.backward else 2) * self.unit_bytes

    @property
    def remarks(self) -> list[str]:
        return ["near"] * self.near

    def make(self) -> Problem:
        distinct = min(self.rows, DISTINCT_ROWS)
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
            wrong = off("the loss", (actual.detach() - loss).abs(), loss_budget)
            if wrong or not self.backward:
                return wrong
            if student.grad is None:
                return "there is no gradient"
            parts = student.grad.split(distinct)
            errors = torch.stack([(part - gradient[: len(part)]).abs().max() for part in parts])
            return off("the gradient", errors.max(), gradient_budget)

        copy = torch.empty_like(teacher)
        return Problem((student, teacher), complaint, Floor(lambda: copy.copy_(teacher), self.work / (2 * copy.nbytes)))

    def providers(self, names: Sequence[str], backends: Sequence[str]) -> list[Provider]:
        def ours(backend: str) -> Loss:
            return lambda student, teacher: divergence(student, teacher, self.divergence, backend=backend)

        return providers.of(
            self, names, backends, ours=ours, dense=partial(by_hand.loss, self.divergence),
            dense_bytes=by_hand.peak_bytes(self.kind, self.rows, self.vocab),
            peers=[peers.liger_of_logits(self), peers.trl_of_logits(self)],
        )  # fmt: skip


def cases(args: Namespace) -> list[RowsCase]:
    return [RowsCase(**shared, near=bool(args.near)) for shared in divergence_settings(args)]
