"""Files and folders that are whole or not there, whenever the process dies."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Puts what `write` makes of a temporary path at `path`, where the old file stays until then."""
    temporary = path.with_name(path.name + ".tmp")
    write(temporary)
    with open(temporary, "rb+") as file:
        os.fsync(file.fileno())
    os.replace(temporary, path)


def write_json(path: Path, value: Any) -> None:
    replace_file(path, lambda temporary: temporary.write_text(json.dumps(value, indent=2) + "\n"))


def replace_folder(path: Path, fill: Callable[[Path], object]) -> None:
    """Puts the folder that `fill` fills at `path`, in place of one that may be there. One process at a time."""
    temporary = path.with_name(path.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    fill(temporary)
    shutil.rmtree(path, ignore_errors=True)
    os.replace(temporary, path)
