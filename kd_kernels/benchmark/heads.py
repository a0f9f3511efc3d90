"""Target `heads`: the divergence between two pairs of hidden states and LM head, mean over the rows that count."""

from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from kd_kernels import Head
from kd_kernels.backends import select
from kd_kernels.benchmark import eager, peers, providers
from kd_kernels.benchmark.case import DivergenceCase, Floor, Loss, Problem, Provider, divergence_settings
from kd_kernels.benchmark.products import Products
from kd_kernels.benchmark.truth import DISTINCT_ROWS, HeadsTruth
from kd_kernels.chunks import plan
from kd_kernels.divergences import KINDS as DIVERGENCES
from kd_kernels.losses import divergence
from kd_kernels.testing.inputs import generator

KINDS = tuple(DIVERGENCES)
ROWS = 1024
DTYPE = "bf16"
HIDDEN = 128
OPTIONS = ("hidden", "teacher_hidden", "masked", "frozen_head", "chunk_tokens", "memory_budget")


@dataclass(frozen=True, kw_only=True)
class HeadsCase(DivergenceCase):
    target: ClassVar[str] = "heads"
    groups: ClassVar[tuple[str, ...]] = select.HEADS
    floor_name: ClassVar[str] = "products"
    work_unit: ClassVar[str] = "GFLOP"
    legend: ClassVar[str] = """\
products: the matrix products alone (both projections, gradients of hidden states and weight), in the same rounds. Peers
are given the rows that count."""

    hidden: int
    teacher_hidden: int
    masked: float = 0.0  # share of the rows that does not count
    frozen_head: bool = False  # no gradient of the weight
    chunk_tokens: int | None = None
    memory_budget: int | None = None

    @property
    def sizes(self) -> dict[str, int]:
        return {"rows": self.rows, "vocab": self.vocab, "hidden": self.hidden, "teacher_hidden": self.teacher_hidden}

    @property
    def counted(self) -> int:
        """Rows that count: at least one."""
        return max(1, round((1 - self.masked) * self.rows))

    @property
    def work(self) -> int:
        """Operations of the products."""
        of_student = 1 + self.backward * (1 if self.frozen_head else 2)
        return 2 * self.counted * self.vocab * (of_student * self.hidden + self.teacher_hidden)

    @property
    def planned_bytes(self) -> int | None:
        chosen = self._plan()
        return None if chosen is None else chosen.peak_bytes

    @property
    def remarks(self) -> list[str]:
        chosen = self._plan()
        planned = []
        if chosen is not None:
            unit = "rows" if chosen.name == "tokens" else "columns"
            planned = [f"chunks of {chosen.size} {unit}", f"{chosen.peak_bytes / 1e6:.0f} MB planned"]
        return [
            *[f"masked {self.masked:g}"] * (self.counted < self.rows),
            *["frozen head"] * self.frozen_head,
            *planned,
        ]

    def make(self) -> Problem:
        g = generator(self.seed)
        distinct = min(self.rows, DISTINCT_ROWS)

        def side(width: int) -> tuple[Tensor, Tensor]:
            hidden, weight = torch.randn(distinct, width, generator=g), torch.randn(self.vocab, width, generator=g)
            weight *= self.logit_scale / width**0.5
            return tuple(x.to(self.device, self.dtype) for x in (hidden, weight))

        (hidden, weight), (teacher_hidden, teacher_weight) = side(self.hidden), side(self.teacher_hidden)
        repeat = torch.arange(self.rows, device=self.device) % distinct
        mask = None
        if self.counted < self.rows:
            mask = (torch.randperm(self.rows, generator=g) < self.counted).to(self.device)
        right = HeadsTruth(self.divergence, hidden, weight, teacher_hidden, teacher_weight, repeat, mask)

        hidden, teacher_hidden = hidden[repeat].requires_grad_(self.backward), teacher_hidden[repeat]
        weight.requires_grad_(self.backward and not self.frozen_head)

        def complaint(loss: Tensor) -> str | None:
            wrong = right.complaint_of_loss(loss)
            for leaf, check in ((hidden, right.complaint_of_hidden), (weight, right.complaint_of_weight)):
                if wrong is None and leaf.requires_grad:
                    wrong = "there is no gradient" if leaf.grad is None else check(leaf.grad)
            return wrong

        inputs = (hidden, weight, teacher_hidden, teacher_weight)
        rows = slice(None) if mask is None else mask
        products = Products(
            hidden[rows], weight, teacher_hidden[rows], teacher_weight, backward=self.backward,
            frozen_head=self.frozen_head,
        )  # fmt: skip
        return Problem(inputs if mask is None else (*inputs, mask), complaint, Floor(products))

    def providers(self, names: Sequence[str], backends: Sequence[str]) -> list[Provider]:
        def ours(backend: str) -> Loss:
            def loss(hidden, weight, teacher_hidden, teacher_weight, mask=None):
                return divergence(
                    Head(hidden, weight), Head(teacher_hidden, teacher_weight), self.divergence, mask=mask,
                    backend=backend, chunk_tokens=self.chunk_tokens, memory_budget=self.memory_budget,
                )  # fmt: skip

            return loss

        def dense(hidden, weight, teacher_hidden, teacher_weight):
            return eager.loss(self.divergence, F.linear(hidden, weight), F.linear(teacher_hidden, teacher_weight))

        return providers.of(
            self, names, backends, ours=ours, dense=dense,
            dense_bytes=eager.peak_bytes(self.kind, self.counted, self.vocab), around=_of_counted_rows,
            peers=[peers.liger_of_heads(self, _of_counted_rows), peers.trl_of_heads(self, _of_counted_rows)],
        )  # fmt: skip

    def _plan(self) -> plan.Plan | None:
        """What the kernels of the device will do; None where the device has none, or nothing fits the budget."""
        device = torch.device(self.device)
        try:
            backend = select.choose("auto", device, (self.dtype, self.dtype), self.groups)
        except RuntimeError:
            return None
        if backend == "reference":
            return None
        student, teacher = (
            plan.Side(width, self.dtype.itemsize, width=self.vocab) for width in (self.hidden, self.teacher_hidden)
        )
        problem = plan.Problem.of(
            self.divergence.kernel.family,
            self.dtype,
            device.type,
            select.implementation(backend),
            rows=self.counted,
            columns=self.vocab,
            student=student,
            teacher=teacher,
            gradients=(self.backward, self.backward and not self.frozen_head, False),
            vocabulary=self.vocab,
            weight_itemsize=self.dtype.itemsize,
            gathered=self.counted < self.rows,
        )
        try:
            return plan.choose(problem, self.chunk_tokens, self.memory_budget)
        except ValueError:
            return None


def _of_counted_rows(loss: Loss) -> Loss:
    """The loss of the rows that count, picked out first."""

    def of_counted_rows(hidden, weight, teacher_hidden, teacher_weight, mask=None):
        if mask is not None:
            hidden, teacher_hidden = hidden[mask], teacher_hidden[mask]
        return loss(hidden, weight, teacher_hidden, teacher_weight)

    return of_counted_rows


def cases(args: Namespace) -> list[HeadsCase]:
    hidden = args.hidden or (16 if args.tiny else HIDDEN)
    return [
        HeadsCase(
            **shared, hidden=hidden, teacher_hidden=args.teacher_hidden or hidden, masked=args.masked or 0.0,
            frozen_head=bool(args.frozen_head), chunk_tokens=args.chunk_tokens, memory_budget=args.memory_budget,
        )
        for shared in divergence_settings(args)
    ]  # fmt: skip
