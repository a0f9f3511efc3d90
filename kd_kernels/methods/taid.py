"""TAID: a teacher that begins as the student."""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from kd_kernels import Head, divergence
from kd_kernels import arguments as checks
from kd_kernels.methods import arguments
from kd_kernels.methods.by_chunk import Rows, constant_rows, losses_by_chunk
from kd_kernels.methods.counting import split


def taid(
    student: Tensor | Head,
    teacher: Tensor | Head,
    t: float,
    *,
    temperature: float = 1.0,
    vocab: str | int = "strict",
    backend: str = "auto",
    chunk_tokens: int | None = None,
    **options: Any,
) -> Tensor:
    """-sum_v p_t log q, p_t = softmax((1 - t) z_s + t z_t), a constant (Shing et al. 2025, arXiv 2501.16937).

    The cross-entropy with a distribution between the student's and the teacher's, in logit space. Its gradient is
    q - p_t: 0 at t = 0, and that of KL(p, q) at t = 1. `TAIDSchedule` gives t.

    Interpolated logits, and those of a `Head`, exist a chunk of rows at a time; they are made again for the gradient.

    Args:
        student: logits `[..., V]` or a `Head`.
        teacher: likewise, of the same rows.
        t: between 0 and 1.
        temperature: divides both logits; the paper has none.
        vocab: as for `divergence`.
        backend: as for `divergence`.
        chunk_tokens: rows in a chunk.
        **options: `mask`, `labels`, `ignore_index`, `reduction` and `normalizer`, as for `divergence`; `reduction` may
            be "sequence_mean" too.

    Returns:
        float32, or float64 for float64 logits. Where student and teacher agree it is their entropy, not 0.

    Raises:
        As `divergence`.
    """
    arguments.share("t", t)
    if not checks.is_number(temperature):
        raise TypeError(f"temperature must be a number, got {temperature!r}")
    counting, _ = split(student, options, ())
    checks.sides(student, teacher)
    columns = checks.vocabulary(vocab, *checks.vocabularies(student, teacher))
    teacher_rows = constant_rows(teacher)

    def losses(x: Tensor, rows: Rows) -> Tensor:
        target = _between(x.detach()[:, :columns], teacher_rows(rows)[:, :columns], t)
        kl, stats = divergence(
            x, target, "forward_kl", temperature=temperature, reduction="none", vocab="common", return_stats=True,
            backend=backend,
        )  # fmt: skip
        return kl + stats.teacher_entropy

    return counting.reduce(losses_by_chunk(losses, student, counting.rows, chunk_tokens))


def _between(student: Tensor, teacher: Tensor, t: float) -> Tensor:
    """(1 - t) student + t teacher, in float32 at least. A weight of 0 leaves its side out even where that is -inf."""
    if t in (0, 1):
        return teacher if t else student
    real = torch.float64 if student.dtype == torch.float64 else torch.float32
    return student.to(real).mul(1 - t).add_(teacher.to(real), alpha=t)


@dataclass
class TAIDSchedule:
    """The t of TAID, step by step: faster than linear where the loss falls (Algorithm 1 of the paper).

    With relative fall D = (L' - L) / L' of the loss since the last step and m = beta m + (1 - beta) D, t becomes
    min(end, max(linear, t + alpha sigmoid(m) (1 - t))), where `linear` goes from start to end over all steps. It never
    falls.

    Attributes:
        steps: how many the training has.
        start: t of the first step.
        end: t of the last.
        alpha: how fast t may run ahead of linear.
        beta: of the momentum m.
        t: for the next step.
    """

    steps: int
    start: float = 0.4
    end: float = 1.0
    alpha: float = 5e-4
    beta: float = 0.99
    t: float = field(init=False)
    momentum: float = field(init=False, default=0.0)
    last_loss: float | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        if isinstance(self.steps, bool) or not isinstance(self.steps, int):
            raise TypeError(f"steps must be an integer, got {self.steps!r}")
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}")
        arguments.share("start", self.start)
        arguments.between("end", self.end, self.start, 1)
        arguments.share("alpha", self.alpha)
        arguments.share("beta", self.beta)
        self.t = self.start

    def update(self, loss: float | Tensor, step: int) -> float:
        """t for the next step, from the loss of step number `step`, counted from 1. Waits for a loss on a GPU."""
        loss = float(loss)
        if self.last_loss is not None:
            fall = (self.last_loss - loss) / (self.last_loss + 1e-15)
            self.momentum = self.beta * self.momentum + (1 - self.beta) * fall
            linear = self.start + (self.end - self.start) * step / self.steps
            ahead = self.t + self.alpha * (1 - self.t) / (1 + math.exp(-self.momentum))
            self.t = min(self.end, max(linear, ahead))
        self.last_loss = loss
        return self.t

    def state_dict(self) -> dict[str, float | None]:
        """What changes from step to step, for checkpoints."""
        return {"t": self.t, "momentum": self.momentum, "last_loss": self.last_loss}

    def load_state_dict(self, state: dict[str, float | None]) -> None:
        self.t, self.momentum, self.last_loss = state["t"], state["momentum"], state["last_loss"]
