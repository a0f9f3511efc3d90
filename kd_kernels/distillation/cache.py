"""Folders that are costly to make, kept between runs and never trusted blindly."""

import fcntl
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

from kd_kernels.distillation.files import replace_folder, write_json

MANIFEST, LOCK = "manifest.json", "lock"


def root(cache_dir: str | None) -> Path:
    """The given folder, or the user's cache folder of this package."""
    if cache_dir:
        return Path(cache_dir)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kd_kernels"


def publish(folder: Path, fill: Callable[[Path], object], replace: bool = False) -> None:
    """Puts a folder with what `fill` writes into the cache, one process at a time.

    Args:
        folder: of the cache.
        fill: writes into an empty folder.
        replace: take the place of a folder that is there; otherwise one that another process put there stays.
    """

    def fill_and_seal(temporary: Path) -> None:
        fill(temporary)
        write_json(temporary / MANIFEST, _hashes(temporary))

    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(folder.parent / LOCK, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # until closed, or until the process dies
        if replace or not intact(folder):
            replace_folder(folder, fill_and_seal)


def intact(folder: Path) -> bool:
    """Whether the folder is there and every file in it as it was published."""
    try:
        return json.loads((folder / MANIFEST).read_text()) == _hashes(folder)
    except (OSError, ValueError):
        return False


def _hashes(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.iterdir() if path.name != MANIFEST)
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
