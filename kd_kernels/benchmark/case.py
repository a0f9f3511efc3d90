"""What is measured: a case, the problem it poses, who may solve it, and one call."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

Loss = Callable[..., Tensor]  # the inputs of a problem -> 0-d loss


@dataclass(frozen=True)
class Problem:
    """The tensors of a case. Those that require a gradient get it in `.grad`."""

    inputs: tuple[Tensor, ...]
    complaint: Callable[[Tensor], str | None]  # what is wrong with this loss and the gradients just computed

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


@dataclass(frozen=True, kw_only=True)
class Case(ABC):
    """What to compute. Light to hold: the tensors come with `make`."""

    target: ClassVar[str]
    dtype: torch.dtype
    device: str
    backward: bool
    seed: int = 0

    @property
    @abstractmethod
    def kind(self) -> str:
        """The loss, by name."""

    @property
    @abstractmethod
    def shape(self) -> dict[str, int]:
        """Named sizes, the one to sweep first."""

    @property
    @abstractmethod
    def bytes_moved(self) -> int:
        """What every implementation must read and write: the floor of its traffic."""

    @property
    @abstractmethod
    def gradient_bytes(self) -> int:
        """Size of the gradients, whether computed or not."""

    @abstractmethod
    def make(self) -> Problem:
        """The inputs, from the seed, with the truth to check results against."""

    @abstractmethod
    def providers(self, names: Sequence[str], backends: Sequence[str]) -> list[Provider]:
        """Those of the named providers that know this kind; one of ours for each backend."""

    @property
    def direction(self) -> str:
        return "forward+backward" if self.backward else "forward"

    @property
    def dtype_name(self) -> str:
        return str(self.dtype).removeprefix("torch.")
