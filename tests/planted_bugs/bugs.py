"""What a planted bug is."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from kd_kernels.divergences import Divergence


class Bug(NamedTuple):
    """A plausible mistake: a snippet of a source file and what someone might have written in its place."""

    file: str  # relative to the folder of the sources
    original: str
    mutated: str
    kind: Divergence  # the one that shows it
    why: str

    def plant(self, folder: Path) -> None:
        _plant(folder, self.file, self.original, self.mutated)


class Change(NamedTuple):
    """Of a source file, which is no bug."""

    file: str
    original: str
    mutated: str

    def plant(self, folder: Path) -> None:
        _plant(folder, self.file, self.original, self.mutated)


class CudaBug(NamedTuple):
    """Likewise, of a CUDA kernel."""

    file: str  # relative to csrc
    original: str
    mutated: str
    check: Callable  # fails on the bug; takes functions of kd_kernels.backends.cuda
    units: tuple[str, ...]  # stems of the .cu files that the check needs
    why: str

    def plant(self, folder: Path) -> None:
        _plant(folder, self.file, self.original, self.mutated)


def _plant(folder: Path, file: str, original: str, mutated: str) -> None:
    path = folder / file
    text = path.read_text()
    found = text.count(original)
    if found != 1:
        raise ValueError(f"{file} holds {found} times, not once: {original!r}")
    path.write_text(text.replace(original, mutated))


def files(bugs: list[Bug]) -> list[str]:
    return list(dict.fromkeys(bug.file for bug in bugs))


def kinds(bugs: list[Bug]) -> list[str]:
    return list(dict.fromkeys(repr(bug.kind) for bug in bugs))
