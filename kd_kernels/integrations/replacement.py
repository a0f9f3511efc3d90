"""Functions of another package, replaced while it is loaded and put back as they were."""

import importlib
import inspect
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NamedTuple


class Target(NamedTuple):
    """A function of another package.

    Attributes:
        module: where it is looked up when it is called.
        path: its name in there, with a dot for a method.
        build: what makes our function of theirs.
        needs: other names of the same module that ours relies on.
    """

    module: str
    path: str
    build: Callable[[Callable], Callable]
    needs: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return f"{self.module}.{self.path}"


class Replacement(NamedTuple):
    """A function that stands in the place of another."""

    owner: Any
    name: str
    original: Any  # as it stood there: a staticmethod is one still
    ours: Any

    def apply(self) -> None:
        setattr(self.owner, self.name, self.ours)

    def undo(self) -> None:
        setattr(self.owner, self.name, self.original)


def prepare(package: str, targets: list[Target]) -> list[Replacement]:
    """Replacements for all the targets, in their order, none of them applied yet.

    Raises:
        ImportError: the package is not installed.
        RuntimeError: the installed version lacks a target, or has one with other parameters; names all of them.
    """
    replacements, problems = [], []
    for target in targets:
        try:
            module = importlib.import_module(target.module)
        except ModuleNotFoundError as error:
            if error.name == package or not f"{target.module}.".startswith(f"{error.name}."):
                raise  # the package itself, or something that it imports
            problems.append(f"{error.name} is missing")
            continue
        missing = [f"{target.module}.{path}" for path in (target.path, *target.needs) if not _has(module, path)]
        if missing:
            problems += [f"{name} is missing" for name in missing]
            continue
        *path, name = target.path.split(".")
        owner = module
        for part in path:
            owner = getattr(owner, part)
        original = inspect.getattr_static(owner, name)
        theirs = original.__func__ if isinstance(original, staticmethod) else original
        ours = target.build(theirs)
        expected, found = (list(inspect.signature(f).parameters) for f in (ours, theirs))
        if expected != found:
            problems.append(f"{target.name} takes ({', '.join(found)}) instead of ({', '.join(expected)})")
            continue
        wrapped = staticmethod(ours) if isinstance(original, staticmethod) else ours
        replacements.append(Replacement(owner, name, original, wrapped))
    if problems:
        raise RuntimeError(f"{package} {_version(package)} is not what this version of kd_kernels knows: "
                           f"{'; '.join(problems)}. Nothing has been patched")  # fmt: skip
    return replacements


def _has(module: Any, path: str) -> bool:
    at = module
    for part in path.split("."):
        if not hasattr(at, part):
            return False
        at = getattr(at, part)
    return True


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "of unknown version"
