"""Target `transport`: SinKD's loss of logits, Sinkhorn iterations of given costs, sorted distributions."""

from abc import abstractmethod
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

import kd_kernels as kd
from kd_kernels import methods
from kd_kernels.benchmark import peers, providers
from kd_kernels.benchmark import transport_eager as by_hand
from kd_kernels.benchmark.case import Case, Loss, Problem, Provider, settings
from kd_kernels.benchmark.memory import shortage
from kd_kernels.benchmark.transport_truth import Truth, sinkd_truth, sinkhorn_truth, sorted_l1_truth
from kd_kernels.benchmark.truth import DISTINCT_ROWS
from kd_kernels.testing.inputs import far_pair, generator, near_pair

ROWS = None  # by kind, below
DTYPE = "fp32"
OPTIONS = ("batch", "iterations", "eps")

SINKD_ROWS = (16, 64)
SINKHORN_SIZES = ((256, 64), (1, 64), (1, 512))  # (batch, rows): throughput, then latency
SORTED_L1_ROWS = 64
TEMPERATURE = 2.0  # SinKD's

# Rows of SinKD that are distinct, and by how much a student's logits differ from its teacher's: each row is closest to
# its own among all others, as in training.
DISTINCT_PAIRS = 64
DISTANCE = 1.0


@dataclass(frozen=True, kw_only=True)
class TransportCase(Case):
    target: ClassVar[str] = "transport"
    floor_name: ClassVar[None] = None

    rows: int

    @property
    @abstractmethod
    def dense_bytes(self) -> int:
        """What PyTorch may need at its peak, as measured."""


@dataclass(frozen=True, kw_only=True)
class LogitsCase(TransportCase):
    vocab: int
    logit_scale: float = 3.0  # standard deviation of the logits

    @property
    def unit_bytes(self) -> int:
        return self.rows * self.vocab * self.dtype.itemsize

    @abstractmethod
    def pair(self) -> tuple[Tensor, Tensor]:
        """The distinct logits of either side, (D, V)."""

    @abstractmethod
    def truth(self, student: Tensor, teacher: Tensor) -> Truth:
        """What is right for rows that repeat these."""

    def make(self) -> Problem:
        student, teacher = (x.to(self.device) for x in self.pair())
        right = self.truth(student, teacher)
        leaf = _repeated(student, self.rows).requires_grad_(self.backward)
        return Problem((leaf, _repeated(teacher, self.rows)), lambda loss: right.complaint(loss, leaf))


@dataclass(frozen=True, kw_only=True)
class SinkDCase(LogitsCase):
    """<P, C> of C_ij = sum_v |q_iv - p_jv| between the rows of either side, as many."""

    kind: ClassVar[str] = "sinkd"
    groups: ClassVar[tuple[str, ...]] = ("l1_cost", "sinkhorn")
    work_unit: ClassVar[str] = "Gpair"
    legend: ClassVar[str] = """\
sinkd, Gpair/s: pairs of rows times entries of the vocabulary; as many again for the gradient."""

    iterations: int = 20
    eps: float = 0.1

    @property
    def sizes(self) -> dict[str, int]:
        return {"rows": self.rows, "vocab": self.vocab, "iterations": self.iterations}

    @property
    def work(self) -> int:
        return (2 if self.backward else 1) * self.rows**2 * self.vocab

    @property
    def dense_bytes(self) -> int:
        tensors = 5.0
        if self.backward and torch.device(self.device).type == "cuda":
            tensors += self.rows  # cdist's gradient holds the sign of every difference there
        return round(tensors * 4 * self.rows * self.vocab)

    @property
    def remarks(self) -> list[str]:
        return [f"temperature {TEMPERATURE:g}", f"eps {self.eps:g}"]

    def pair(self) -> tuple[Tensor, Tensor]:
        distinct = min(self.rows, DISTINCT_PAIRS)
        return near_pair(distinct, self.vocab, self.dtype, distance=DISTANCE, scale=self.logit_scale, seed=self.seed)

    def truth(self, student: Tensor, teacher: Tensor) -> Truth:
        return sinkd_truth(
            student, teacher, self.rows, temperature=TEMPERATURE, eps=self.eps, iterations=self.iterations,
            backward=self.backward,
        )  # fmt: skip

    def providers(self, names: Sequence[str], backends: Sequence[str]) -> list[Provider]:
        options = {"temperature": TEMPERATURE, "eps": self.eps, "iterations": self.iterations}

        def ours(backend: str) -> Loss:
            return partial(methods.sinkd, **options, backend=backend)

        dense = partial(by_hand.sinkd, **options)
        return providers.of(self, names, backends, ours=ours, dense=dense, dense_bytes=(self.dense_bytes,) * 2)


@dataclass(frozen=True, kw_only=True)
class SinkhornCase(TransportCase):
    """<P, C> of given costs for uniform marginals, mean over square problems."""

    kind: ClassVar[str] = "sinkhorn"
    groups: ClassVar[tuple[str, ...]] = ("sinkhorn",)
    work_unit: ClassVar[str] = "GFMA"
    memory_unit: ClassVar[str] = "costs"
    baselines: ClassVar[tuple[str, ...]] = ("eager", "pot")
    legend: ClassVar[str] = """\
sinkhorn, GFMA/s: two multiply-adds (K y, K^T x) an entry and iteration; six with the gradient."""

    batch: int
    iterations: int = 20
    eps: float = 0.1

    @property
    def sizes(self) -> dict[str, int]:
        return {"batch": self.batch, "rows": self.rows, "iterations": self.iterations}

    @property
    def work(self) -> int:
        return (6 if self.backward else 2) * self.iterations * self.batch * self.rows**2

    @property
    def unit_bytes(self) -> int:
        return self.batch * self.rows**2 * self.dtype.itemsize

    @property
    def dense_bytes(self) -> int:
        tensors = 12 + (3.5 * self.iterations if self.backward else 0)
        return round(tensors * 4 * self.batch * self.rows**2)

    @property
    def remarks(self) -> list[str]:
        return [f"eps {self.eps:g}"]

    def make(self) -> Problem:
        # As far as distributions are apart. Of one small problem the rounding in PyTorch would be a matter of luck.
        sizes = (DISTINCT_ROWS, self.rows, self.rows)
        cost = (2 * torch.rand(sizes, generator=generator(self.seed))).to(self.device, self.dtype)
        right = sinkhorn_truth(cost, self.batch, eps=self.eps, iterations=self.iterations, backward=self.backward)
        leaf = _repeated(cost, self.batch).requires_grad_(self.backward)
        return Problem((leaf,), lambda loss: right.complaint(loss, leaf))

    def providers(self, names: Sequence[str], backends: Sequence[str]) -> list[Provider]:
        options = {"eps": self.eps, "iterations": self.iterations}

        def ours(backend: str) -> Loss:
            return lambda cost: kd.sinkhorn(cost, "uniform", "uniform", **options, backend=backend).value.mean()

        dense, plain = (partial(loss, **options) for loss in (by_hand.sinkhorn, by_hand.sinkhorn_plain))
        return providers.of(
            self, names, backends, ours=ours, dense=dense, dense_bytes=(self.dense_bytes,) * 2,
            peers=[
                Provider("plain", lambda: plain, skip=shortage(self.dense_bytes, self.device)), peers.pot_of_costs(self)
            ],
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class SortedL1Case(LogitsCase):
    """sum_k |q_(k) - p_(k)|, mean over rows."""

    kind: ClassVar[str] = "sorted_l1"
    groups: ClassVar[tuple[str, ...]] = ("sorted_l1",)
    work_unit: ClassVar[str] = "GB"
    legend: ClassVar[str] = """\
sorted_l1, GB/s: both logits are read, the gradient is written."""

    @property
    def sizes(self) -> dict[str, int]:
        return {"rows": self.rows, "vocab": self.vocab}

    @property
    def work(self) -> int:
        return (3 if self.backward else 2) * self.unit_bytes

    @property
    def dense_bytes(self) -> int:
        return 9 * 4 * self.rows * self.vocab

    def pair(self) -> tuple[Tensor, Tensor]:
        distinct = min(self.rows, DISTINCT_ROWS)
        return far_pair(distinct, self.vocab, self.dtype, scale=self.logit_scale, seed=self.seed)

    def truth(self, student: Tensor, teacher: Tensor) -> Truth:
        return sorted_l1_truth(student, teacher, self.rows, backward=self.backward)

    def providers(self, names: Sequence[str], backends: Sequence[str]) -> list[Provider]:
        def ours(backend: str) -> Loss:
            return lambda student, teacher: kd.sorted_l1(student, teacher, backend=backend)

        dense = by_hand.sorted_l1
        return providers.of(self, names, backends, ours=ours, dense=dense, dense_bytes=(self.dense_bytes,) * 2)


KINDS = tuple(case.kind for case in (SinkDCase, SinkhornCase, SortedL1Case))


def cases(args: Namespace) -> list[TransportCase]:
    """At the sizes above, or the one that the arguments give."""
    rows, iterated = args.rows, {"iterations": args.iterations or 20, "eps": args.eps or 0.1}
    of_logits = {"vocab": args.vocab, "logit_scale": args.logit_scale}
    sizes = SINKHORN_SIZES
    if rows or args.batch:
        sizes = [(args.batch or (1 if args.tiny else SINKHORN_SIZES[0][0]), rows or SINKHORN_SIZES[0][1])]
    found: list[TransportCase] = []
    for kind, shared in settings(args):
        if kind == "sinkd":
            found += [SinkDCase(**shared, **of_logits, **iterated, rows=n) for n in ([rows] if rows else SINKD_ROWS)]
        elif kind == "sinkhorn":
            found += [SinkhornCase(**shared, **iterated, batch=batch, rows=n) for batch, n in sizes]
        else:
            found.append(SortedL1Case(**shared, **of_logits, rows=rows or SORTED_L1_ROWS))
    return found


def _repeated(x: Tensor, size: int) -> Tensor:
    return x[torch.arange(size, device=x.device) % len(x)]
