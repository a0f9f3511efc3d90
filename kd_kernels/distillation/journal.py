"""What a training leaves behind as it goes: metrics and a checkpoint that make it resumable without a trace."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from kd_kernels.distillation.files import replace_file

METRICS, CHECKPOINT = "metrics.jsonl", "checkpoint.safetensors"


class Journal:
    """`metrics.jsonl` and `checkpoint.safetensors` in a folder.

    The checkpoint is one file, replaced in one move: tensors of the model and of the optimizer, and in its header the
    step, the length of the metrics then, and what an objective has to keep. There is no generator state in it:
    randomness is a function of the step.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._checkpoint = folder / CHECKPOINT
        self._metrics = folder / METRICS
        self._metrics.touch()

    def restore(self, model: nn.Module, optimizer: Optimizer) -> tuple[int, dict[str, float | None]]:
        """Goes back to the checkpoint, or to the beginning where there is none.

        Returns:
            The number of steps done, and the state of the objective then.
        """
        if not self._checkpoint.exists():
            os.truncate(self._metrics, 0)
            return 0, {}
        with safe_open(self._checkpoint, framework="pt") as file:
            step, length = (int(file.metadata()[key]) for key in ("step", "metrics_bytes"))
            objective = json.loads(file.metadata()["objective"])
            saved = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if os.path.getsize(self._metrics) < length:
            raise ValueError(f"{self._metrics} is shorter than it was at the checkpoint; it cannot be resumed")
        with torch.no_grad():
            for name, tensor in _tensors(model).items():
                tensor.copy_(saved.pop(f"model.{name}"))
        optimizer.load_state_dict({"state": _unflatten(saved), "param_groups": optimizer.state_dict()["param_groups"]})
        os.truncate(self._metrics, length)
        return step, objective

    def save(self, step: int, model: nn.Module, optimizer: Optimizer, objective: Mapping[str, float | None]) -> None:
        """Makes this step the one to go back to."""
        with open(self._metrics, "rb+") as file:
            os.fsync(file.fileno())
        tensors = {f"model.{name}": tensor for name, tensor in _tensors(model).items()}
        for index, state in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{key}": value for key, value in state.items()}
        length = str(os.path.getsize(self._metrics))
        metadata = {"step": str(step), "metrics_bytes": length, "objective": json.dumps(objective)}
        replace_file(self._checkpoint, lambda path: save_file(tensors, path, metadata))

    def write(self, record: dict[str, Any]) -> None:
        with open(self._metrics, "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def records(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self._metrics.read_text(encoding="utf-8").splitlines()]


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers, tied ones once."""
    return dict(model.named_parameters()) | dict(model.named_buffers())


def _unflatten(saved: dict[str, Tensor]) -> dict[int, dict[str, Tensor]]:
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in saved.items():
        _, index, key = name.split(".")
        state.setdefault(int(index), {})[key] = tensor
    return state
