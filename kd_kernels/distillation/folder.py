"""The output folder: who may write into it."""

import json
import platform
import shutil
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import transformers

import kd_kernels
from kd_kernels.distillation.files import write_json
from kd_kernels.distillation.journal import CHECKPOINT, METRICS
from kd_kernels.distillation.settings import Settings

CONFIG, RESULT, PLOT = "config.json", "result.json", "plot.png"
STUDENT, TEACHER_WORK = "student", "teacher"

# Settings that change neither the student nor the metrics, but for the rounding of another number of threads.
FREE_ON_RESUME = frozenset({"out", "resume", "overwrite", "save_every", "cache_dir", "teacher_cache", "threads"})


def describe(settings: Settings, data_digest: str, cache_digest: str | None) -> dict[str, Any]:
    """What `config.json` holds: everything that decides the result."""
    environment = {
        "kd_kernels": kd_kernels.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
    }
    return {
        "settings": asdict(settings),
        "data_sha256": data_digest,
        "teacher_cache_sha256": cache_digest,
        "environment": environment,
    }


def check(settings: Settings, config: dict[str, Any]) -> None:
    """Checks that the output folder is this run's to write into; changes nothing.

    Raises:
        ValueError: it holds something else, and what to do about it.
    """
    folder = Path(settings.out)
    if settings.overwrite:
        return
    if settings.resume and (folder / CONFIG).exists():
        _check_same(json.loads((folder / CONFIG).read_text()), config, folder)
    elif folder.exists() and any(path.suffix != ".tmp" for path in folder.iterdir()):
        if settings.resume:
            raise ValueError(f"{folder} has no run to resume and is not empty: choose another --out")
        raise ValueError(f"{folder} is not empty: pass --resume to go on with its run, --overwrite, or another --out")


def prepare(settings: Settings, config: dict[str, Any]) -> Path:
    """The checked folder, emptied of an earlier run if the settings say so."""
    folder = Path(settings.out)
    if settings.overwrite:
        _remove_outputs(folder)
    if not (folder / CONFIG).exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / CONFIG, config)
    return folder


def _check_same(then: dict[str, Any], now: dict[str, Any], folder: Path) -> None:
    before = then["settings"]
    differences = [
        f"--{name.replace('_', '-')} was {before.get(name)}, is {value}"
        for name, value in now["settings"].items()
        if name not in FREE_ON_RESUME and value != before.get(name)
    ]
    if then["data_sha256"] != now["data_sha256"]:
        differences.append("the text of --data is another")
    if then.get("teacher_cache_sha256") != now["teacher_cache_sha256"]:
        differences.append("the file of --teacher-cache is another")
    if differences:
        raise ValueError(f"cannot resume {folder}: {'; '.join(differences)}")
    for name, value in now["environment"].items():
        if value != then["environment"].get(name):
            message = f"{name} was {then['environment'].get(name)}, is {value}: the last digits may differ"
            print(message, file=sys.stderr)


def _remove_outputs(folder: Path) -> None:
    """Removes what a run writes, and nothing else; in an order that leaves a sound run behind if it is cut short."""
    for name in (STUDENT, TEACHER_WORK):
        shutil.rmtree(folder / name, ignore_errors=True)
    for name in (CHECKPOINT, METRICS, RESULT, PLOT, CONFIG):
        (folder / name).unlink(missing_ok=True)
