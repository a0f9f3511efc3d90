"""DistiLLM and DistiLLM-2: skewed KLs."""

from typing import Any

import torch
from torch import Tensor

from kd_kernels import JSD, Head, ReverseKL, SkewForwardKL, SkewReverseKL, TopK, divergence
from kd_kernels.methods import arguments
from kd_kernels.methods.counting import row_options
from kd_kernels.methods.samples import Samples
from kd_kernels.transport.arguments import choice

VARIANTS = {"skl": SkewForwardKL, "srkl": SkewReverseKL}


def distillm(
    student: Tensor | Head,
    teacher: Tensor | Head | TopK,
    variant: str = "srkl",
    *,
    alpha: float = 0.1,
    temperature: float | tuple[float, float] = 1.0,
    scale_t2: bool = False,
    **options: Any,
) -> Tensor:
    """A skewed KL (Ko et al. 2024, arXiv 2402.03898, eq. 5).

    "skl" is KL(p, alpha p + (1 - alpha) q), "srkl" is KL(q, (1 - alpha) p + alpha q).

    Args:
        student: logits `[..., V]` or a `Head`.
        teacher: logits, a `Head` or a `TopK` of the same rows.
        variant: "skl" or "srkl".
        alpha: at least 0 and below 1; 0 is the plain KL.
        temperature: T, or a pair (student's, teacher's).
        scale_t2: multiply by T^2.
        **options: `mask`, `labels`, `ignore_index`, `reduction`, `normalizer`, `vocab`, `backend`, `chunk_tokens` and
            `memory_budget`, as for `divergence`; `reduction` may be "sequence_mean" too.

    Returns:
        float32, or float64 for float64 logits.

    Raises:
        As `divergence`.
    """
    choice("variant", variant, tuple(VARIANTS))
    options = row_options(student, options)
    return divergence(student, teacher, VARIANTS[variant](alpha), temperature=temperature, scale_t2=scale_t2, **options)


def distillm2(
    teacher_samples: Samples | None = None,
    student_samples: Samples | None = None,
    *,
    alpha: float = 0.1,
    beta: float = 1.0,
    detached: bool = False,
    temperature: float | tuple[float, float] = 1.0,
    reduction: str = "sequence_mean",
    **options: Any,
) -> Tensor:
    """(2 - beta) SKL on the teacher's texts + beta SRKL on the student's (Ko et al. 2025, arXiv 2503.07067).

    The contrast is in who wrote what: SKL raises the student where the teacher writes, SRKL lowers it where it writes
    itself what the teacher would not.

    Args:
        teacher_samples: what is predicted along texts of the teacher; None leaves out their half.
        student_samples: what is predicted along texts of the student, likewise.
        alpha: of both skews.
        beta: between 0 and 2.
        detached: q is a constant in SRKL's mixture (1 - alpha) p + alpha q, as in the published code. The value stays
            what it is; the gradient is that of JSD(1 - alpha) / alpha.
        temperature: T, or a pair (student's, teacher's).
        reduction: "sequence_mean": over the tokens of each text, then over the texts; or as for `divergence`. "none" is
            for a single half only.
        **options: `normalizer`, `vocab`, `backend`, `chunk_tokens` and `memory_budget`, as for `divergence`.

    Returns:
        The weighted half, or the sum of both; float32, or float64 for float64 logits.

    Raises:
        As `divergence`; ValueError where there are no samples.
    """
    arguments.between("beta", beta, 0, 2)
    arguments.flag("detached", detached)
    options = {**options, "reduction": reduction}
    losses = []
    for name, samples, weight in (
        ("teacher_samples", teacher_samples, 2 - beta), ("student_samples", student_samples, beta)
    ):  # fmt: skip
        if samples is None:
            continue
        if not isinstance(samples, Samples):
            raise TypeError(f"{name} must be Samples, got {type(samples).__name__}")
        given = row_options(samples.student, options | {"mask": samples.mask, "labels": samples.labels})
        given["temperature"] = temperature
        if name == "teacher_samples":
            loss = divergence(samples.student, samples.teacher, SkewForwardKL(alpha), **given)
        else:
            loss = (_detached_srkl if detached else _srkl)(samples, alpha, given)
        losses.append(weight * loss)
    if not losses:
        raise ValueError("distillm2 needs teacher_samples, student_samples, or both")
    if len(losses) == 2 and reduction == "none":
        raise ValueError("reduction='none' is for one half at a time: the two have different rows")
    return sum(losses)


def _srkl(samples: Samples, alpha: float, options: dict[str, Any]) -> Tensor:
    return divergence(samples.student, samples.teacher, SkewReverseKL(alpha), **options)


def _detached_srkl(samples: Samples, alpha: float, options: dict[str, Any]) -> Tensor:
    """KL(q, m) with m a constant: its gradient, q (log q - log m) less its mean, is the JSD's but for a factor."""
    kind = SkewReverseKL(alpha)
    if kind.alpha == 0:  # the mixture is the teacher
        return divergence(samples.student, samples.teacher, ReverseKL(), **options)
    with_gradient = divergence(samples.student, samples.teacher, JSD(1 - alpha), **options) / alpha
    with torch.no_grad():
        value = divergence(samples.student, samples.teacher, kind, **options)
    return value + (with_gradient - with_gradient.detach())
