"""What a planted bug is."""

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
        path = folder / self.file
        text = path.read_text()
        found = text.count(self.original)
        if found != 1:
            raise ValueError(f"{self.file} holds {found} times, not once: {self.original!r}")
        path.write_text(text.replace(self.original, self.mutated))


def files(bugs: list[Bug]) -> list[str]:
    return list(dict.fromkeys(bug.file for bug in bugs))


def kinds(bugs: list[Bug]) -> list[str]:
    return list(dict.fromkeys(repr(bug.kind) for bug in bugs))
