"""f-DISTILL: f-divergences between sequences, step by step."""

from typing import Any

from torch import Tensor

from kd_kernels import TVD, ForwardKL, Head, JSStudent, JSTeacher, ReverseKL, arguments, divergence
from kd_kernels.losses import entropy
from kd_kernels.methods.counting import row_options
from kd_kernels.methods.samples import Samples
from kd_kernels.transport.arguments import choice

VARIANTS = ("kl", "rkl", "js", "tvd")


def f_distill(
    variant: str,
    teacher_samples: Samples | None = None,
    student_samples: Samples | None = None,
    *,
    beta: float = 0.5,
    temperature: float | tuple[float, float] = 1.0,
    scale_t2: bool = False,
    **options: Any,
) -> Tensor:
    """The step-wise losses of f-DISTILL (Wen et al. 2023, arXiv 2307.15190, §3.2), up to constants.

    With p and q the next-token distributions along a text Y that the teacher sampled and a text Y' that the student
    sampled, and m = (1 - beta) p + beta q:

    * "kl":  sum_Y KL(p, q)
    * "rkl": sum_Y' KL(q, p)
    * "js":  (1 - beta) sum_Y KL(p, m) + beta sum_Y' KL(q, m)
    * "tvd": 1/2 sum_Y TVD(p, q) + 1/2 sum_Y' TVD(p, q)

    Gradients go through q wherever it occurs, m included, and not through the sampling of Y'. Of "js" and "tvd" either
    half may be asked for alone, by handing over its samples alone: the two have no tokens in common.

    Args:
        variant: "kl", "rkl", "js" or "tvd".
        teacher_samples: what is predicted along Y. "rkl" has none.
        student_samples: what is predicted along Y'. "kl" has none.
        beta: of "js", between 0 and 1; the paper's is 1/2. It weighs the student, the opposite of GKD's.
        temperature: T, or a pair (student's, teacher's).
        scale_t2: multiply by T^2, as some of the published code does.
        **options: `reduction`, `normalizer`, `vocab`, `backend`, `chunk_tokens` and `memory_budget`, as for
            `divergence`, for each half by itself; `reduction` may be "sequence_mean" too, and is "none" for a single
            half only.

    Returns:
        The weighted half, or the sum of both; float32, or float64 for float64 logits.

    Raises:
        As `divergence`; ValueError where samples are missing, or of no use.
    """
    choice("variant", variant, VARIANTS)
    of_teacher, of_student = _halves(variant, beta)
    losses = []
    for name, samples, half in (
        ("teacher_samples", teacher_samples, of_teacher), ("student_samples", student_samples, of_student)
    ):  # fmt: skip
        if samples is None:
            continue
        if not isinstance(samples, Samples):
            raise TypeError(f"{name} must be Samples, got {type(samples).__name__}")
        if half is None:
            raise ValueError(f"{name} must be None for variant {variant!r}, which has no loss on them")
        weight, kind = half
        of_rows = row_options(samples.student, options | {"mask": samples.mask, "labels": samples.labels})
        loss = divergence(samples.student, samples.teacher, kind, temperature=temperature, scale_t2=scale_t2, **of_rows)
        losses.append(weight * loss)
    if not losses:
        wanted = " or ".join(
            name for name, half in (("teacher_samples", of_teacher), ("student_samples", of_student)) if half
        )
        raise ValueError(f"variant {variant!r} needs {wanted}")
    if len(losses) == 2 and options.get("reduction") == "none":
        raise ValueError("reduction='none' is for one half at a time: the two have different rows")
    return sum(losses)


def engine(
    student: Tensor | Head,
    teacher: Tensor | Head,
    *,
    temperature: float | tuple[float, float] = 1.0,
    **options: Any,
) -> Tensor:
    """-sum_v q_v log p_v along the student's samples (ENGINE, Tu et al. 2020): f-DISTILL's RKL without the entropy.

    Args:
        student: logits `[..., V]` or a `Head`.
        teacher: likewise, of the same rows.
        temperature: T, or a pair (student's, teacher's).
        **options: `mask`, `labels`, `ignore_index`, `reduction`, `normalizer`, `vocab`, `backend`, `chunk_tokens` and
            `memory_budget`, as for `divergence`; `reduction` may be "sequence_mean" too.

    Returns:
        KL(q, p) + H(q), which is 0 where both are certain of the same entry; float32, or float64 for float64 logits.

    Raises:
        As `divergence`.
    """
    options = row_options(student, options) | {"temperature": temperature}
    arguments.sides(student, teacher)
    sizes = arguments.vocabularies(student, teacher)
    columns = arguments.vocabulary(options.get("vocab", "strict"), *sizes)
    return divergence(student, teacher, "reverse_kl", **options) + entropy(student, columns, **options)


def _halves(variant: str, beta: float):
    """(weight, kind) of teacher samples and of student samples; None where there is no such half."""
    if variant == "kl":
        return (1.0, ForwardKL()), None
    if variant == "rkl":
        return None, (1.0, ReverseKL())
    if variant == "tvd":
        return (0.5, TVD()), (0.5, TVD())
    return (1 - beta, JSTeacher(beta)), (beta, JSStudent(beta))
