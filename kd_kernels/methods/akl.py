"""AKL: adaptive KL."""

from typing import Any

from torch import Tensor

from kd_kernels import AKL, Head, TopK, divergence
from kd_kernels.methods.counting import row_options


def akl(
    student: Tensor | Head,
    teacher: Tensor | Head | TopK,
    *,
    mu: float = 0.5,
    temperature: float | tuple[float, float] = 1.0,
    scale_t2: bool = False,
    **options: Any,
) -> Tensor:
    """(g_head KL(p, q) + g_tail KL(q, p)) / (g_head + g_tail) (Wu et al. 2024, arXiv 2404.02657, eqs. 12-14).

    g sums |p - q| over the head of the teacher's distribution, the likeliest entries up to a mass of mu, and over its
    tail. The weights are constant in the gradient.

    Args:
        student: logits `[..., V]` or a `Head`.
        teacher: logits, a `Head` or a `TopK` of the same rows.
        mu: mass of the head, at least 0 and below 1.
        temperature: T, or a pair (student's, teacher's).
        scale_t2: multiply by T^2.
        **options: `mask`, `labels`, `ignore_index`, `reduction`, `normalizer`, `vocab`, `backend`, `chunk_tokens` and
            `memory_budget`, as for `divergence`; `reduction` may be "sequence_mean" too.

    Returns:
        float32, or float64 for float64 logits.

    Raises:
        As `divergence`.
    """
    options = row_options(student, options)
    return divergence(student, teacher, AKL(mu), temperature=temperature, scale_t2=scale_t2, **options)
