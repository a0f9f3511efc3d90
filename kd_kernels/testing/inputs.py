"""Pairs of logits in the regimes that matter."""

import torch
from torch import Tensor


def generator(seed: int, device: str = "cpu") -> torch.Generator:
    return torch.Generator(device).manual_seed(seed)


def far_pair(
    rows: int, vocab: int, dtype: torch.dtype = torch.float32, *, scale: float = 3.0, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Unrelated student and teacher logits, neither flat nor one-hot."""
    g = generator(seed)
    student = torch.randn(rows, vocab, generator=g, dtype=torch.float64) * scale
    teacher = torch.randn(rows, vocab, generator=g, dtype=torch.float64) * scale
    return student.to(dtype), teacher.to(dtype)


def near_pair(
    rows: int, vocab: int, dtype: torch.dtype = torch.float32, *, distance: float = 1e-3, scale: float = 3.0,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """A student that has all but converged: KL(p, q) is about distance^2 / 2. The difference survives the dtype."""
    g = generator(seed)
    teacher = (torch.randn(rows, vocab, generator=g, dtype=torch.float64) * scale).to(dtype)
    student = teacher.double() + torch.randn(rows, vocab, generator=g, dtype=torch.float64) * distance
    return student.to(dtype), teacher


def one_hot_pair(
    rows: int, vocab: int, dtype: torch.dtype = torch.float32, *, height: float = 60.0, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Teacher and student each certain of an entry, by about e^height; they agree on it in every other row."""
    student, teacher = far_pair(rows, vocab, scale=0.1, seed=seed)
    index = torch.arange(rows)
    teacher[index, index % vocab] += height
    student[index, (index + index % 2) % vocab] += height
    return student.to(dtype), teacher.to(dtype)
