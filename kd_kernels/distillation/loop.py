"""The training loop."""

import math
import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn
from torch.optim import AdamW, Optimizer

from kd_kernels.distillation.batches import derive_seed
from kd_kernels.distillation.journal import Journal
from kd_kernels.distillation.objective import Objective
from kd_kernels.distillation.progress import Progress
from kd_kernels.distillation.stop import Stopped, deferred_signals


@dataclass(frozen=True)
class Plan:
    """How long and how fast: AdamW, linear warm-up, then a cosine down to 0."""

    steps: int
    lr: float
    warmup: int
    weight_decay: float
    clip: float
    seed: int
    accumulate: int = 1
    save_every: int = 50
    eval_every: int = 0

    def rate(self, step: int) -> float:
        """Learning rate of a step, counted from 0."""
        if step < self.warmup:
            return self.lr * (step + 1) / (self.warmup + 1)
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.lr * 0.5 * (1 + math.cos(math.pi * done))


class Batch(Protocol):
    """What a step sees."""

    def count(self) -> int:
        """Number of tokens to predict."""
        ...

    def parts(self, n: int) -> Sequence["Batch"]:
        """n batches of equal size."""
        ...


class Batches(Protocol):
    """What the steps see, as a function of the step and the model's state."""

    def at(self, step: int, model: nn.Module) -> Batch: ...


def train(
    model: nn.Module,
    objective: Objective,
    batches: Batches,
    plan: Plan,
    journal: Journal,
    label: str,
    evaluate: Callable[[], dict[str, float]] | None = None,
) -> None:
    """Trains the model in place, from where the journal left off.

    Args:
        model: what the objective's loss is a function of.
        objective: the loss.
        batches: what each step sees.
        plan: the schedule.
        journal: receives a record for every step and evaluation, and the checkpoints.
        label: what the progress bar calls this.
        evaluate: called before the first step, after the last, and every `plan.eval_every` steps.

    Raises:
        Stopped: on SIGINT or SIGTERM, after the step under way, with everything saved.
        ValueError: the loss is not finite any more.
    """
    optimizer = AdamW(model.parameters(), plan.lr, betas=(0.9, 0.95), weight_decay=plan.weight_decay, fused=True)
    start, state = journal.restore(model, optimizer)
    if start > 0:
        objective.restore(state)
    elif evaluate is not None:
        journal.write({"step": 0, "eval": evaluate()})
    model.train()
    with deferred_signals() as signals, Progress(label, start, plan.steps) as progress:
        for step in range(start, plan.steps):
            # Dropout, too, is a function of the step.
            torch.manual_seed(derive_seed(plan.seed, "step", step))
            record = _step(model, objective, batches, optimizer, plan, step)
            journal.write(record)
            progress.advance(record)
            done = step + 1
            last = done == plan.steps
            if evaluate is not None and (last or _due(done, plan.eval_every)):
                journal.write({"step": done, "eval": evaluate()})
                model.train()
            if last or signals or _due(done, plan.save_every):
                journal.save(done, model, optimizer, objective.state())
            if signals:
                raise Stopped(signals[0], f"{label}: stopped and saved after step {done} of {plan.steps}")


def _step(
    model: nn.Module, objective: Objective, batches: Batches, optimizer: Optimizer, plan: Plan, step: int
) -> dict[str, Any]:
    begin = time.perf_counter()
    batch = batches.at(step, model)
    tokens = batch.count()
    sums: dict[str, float] = {}
    for part in batch.parts(plan.accumulate):
        loss, metrics = objective(model, part, batch)
        loss.backward()
        for name, value in {"loss": loss, **metrics}.items():
            sums[name] = sums.get(name, 0.0) + value.item()
    norm = nn.utils.clip_grad_norm_(model.parameters(), plan.clip).item()
    if not math.isfinite(sums["loss"] + norm):
        raise ValueError(f"step {step + 1}: loss {sums['loss']}, gradient norm {norm}; a lower --lr may help")
    rate = plan.rate(step)
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
    optimizer.zero_grad()
    objective.advance(sums, step + 1)
    seconds = time.perf_counter() - begin
    measured = {
        "lr": rate, "grad_norm": norm, "tokens": tokens, "seconds": round(seconds, 4),
        "tokens_per_s": round(tokens / seconds, 1),
    }  # fmt: skip
    return {"step": step + 1, **sums, **measured, **_peak_memory(next(model.parameters()).device)}


def _peak_memory(device: torch.device) -> dict[str, float]:
    if device.type == "cuda":
        return {"peak_cuda_mb": round(torch.cuda.max_memory_allocated(device) / 2**20, 1)}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    unit = 1 if sys.platform == "darwin" else 2**10  # bytes there, KiB elsewhere
    return {"peak_rss_mb": round(peak * unit / 2**20, 1)}


def _due(done: int, every: int) -> bool:
    return every > 0 and done % every == 0
