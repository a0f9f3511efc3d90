"""What is measured: a case, the problem it poses, who may solve it, and one call."""

from abc import ABC, abstractmethod
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from kd_kernels.divergences import KINDS, Divergence

Loss = Callable[..., Tensor]  # the inputs of a problem -> 0-d loss


@dataclass(frozen=True)
class Floor:
    """What every implementation must do at least: its time is that of `call`, `times` over."""

    call: Callable[[], object]
    times: float = 1.0


@dataclass(frozen=True)
class Problem:
    """The tensors of a case. Those that require a gradient get it in `.grad`."""

    inputs: tuple[Tensor, ...]
    complaint: Callable[[Tensor], str | None]  # what is wrong with this loss and the gradients just computed
    floor: Floor | None = None

    def clear(self) -> None:
        for x in self.inputs:
            x.grad = None


@dataclass(frozen=True)
class Call:
    """One sample: what a training step (`backward`) or an evaluation pays for the loss."""

    loss: Loss
    inputs: tuple[Tensor, ...]
    backward: bool

    def __call__(self) -> Tensor:
        loss = self.loss(*self.inputs)
        if self.backward:
            loss.backward()
        return loss


@dataclass(frozen=True)
class Provider:
    """Who computes the loss of a case: `build` imports and compiles what that takes."""

    name: str
    build: Callable[[], Loss]
    missing: str | None = None  # why it cannot run here
    ours: bool = False
    skip: str | None = None  # why it is better not run here


@dataclass(frozen=True, kw_only=True)
class Case(ABC):
    """What to compute: a 0-d loss. Light to hold: the tensors come with `make`."""

    target: ClassVar[str]
    floor_name: ClassVar[str | None]  # None where no floor is measured
    work_unit: ClassVar[str]  # giga
    memory_unit: ClassVar[str] = "logits"
    groups: ClassVar[tuple[str, ...]]  # functions of a backend that the loss may call for
    baselines: ClassVar[tuple[str, ...]] = ("eager", "compile")  # providers whose times others are compared with
    legend: ClassVar[str]  # of the columns that depend on the target

    dtype: torch.dtype
    device: str
    backward: bool
    seed: int = 0
    axis: str = "rows"  # the size that a sweep varies

    @property
    @abstractmethod
    def kind(self) -> str:
        """Name of the loss."""

    @property
    @abstractmethod
    def sizes(self) -> dict[str, int]:
        """The sizes, by name."""

    @property
    @abstractmethod
    def work(self) -> int:
        """What every implementation must do, in `work_unit` but for the giga."""

    @property
    @abstractmethod
    def unit_bytes(self) -> int:
        """Size of one tensor of `memory_unit`, or of its gradient."""

    @abstractmethod
    def make(self) -> Problem:
        """The inputs, from the seed, with the truth to check results against."""

    @abstractmethod
    def providers(self, names: Sequence[str], backends: Sequence[str]) -> list[Provider]:
        """Those of the named providers that know this kind; one of ours for each backend."""

    @property
    def planned_bytes(self) -> int | None:
        """Extra peak memory that this library plans with, where it makes a plan."""
        return None

    @property
    def remarks(self) -> list[str]:
        """What else tells this case from others."""
        return []

    @property
    def shape(self) -> dict[str, int]:
        """The sizes, the one that varies first."""
        return {self.axis: self.sizes[self.axis], **self.sizes}

    @property
    def direction(self) -> str:
        return "forward+backward" if self.backward else "forward"

    @property
    def dtype_name(self) -> str:
        return str(self.dtype).removeprefix("torch.")


@dataclass(frozen=True, kw_only=True)
class DivergenceCase(Case):
    """A divergence, mean over rows."""

    divergence: Divergence
    rows: int
    vocab: int
    logit_scale: float = 3.0  # standard deviation of the logits

    @property
    def kind(self) -> str:
        return self.divergence.name

    @property
    def unit_bytes(self) -> int:
        return self.rows * self.vocab * self.dtype.itemsize


def settings(args: Namespace) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every kind that the command line asks for, with what the cases of all targets take from there."""
    directions = {"forward": [False], "forward+backward": [True], "both": [False, True]}
    for dtype in args.dtype:
        for backward in directions[args.direction]:
            for kind in args.kind:
                yield kind, {
                    "device": args.device, "dtype": getattr(torch, dtype), "backward": backward, "seed": args.seed,
                }  # fmt: skip


def divergence_settings(args: Namespace) -> Iterator[dict[str, Any]]:
    """What the cases of divergences take from the command line, for every case that it asks for."""
    for kind, shared in settings(args):
        yield {
            **shared, "divergence": KINDS[kind](), "rows": args.rows, "vocab": args.vocab,
            "logit_scale": args.logit_scale,
        }  # fmt: skip
