"""GKD: generalised knowledge distillation, on and off policy."""

import random
from typing import Any

from torch import Tensor

from kd_kernels import JSD, Head, TopK, divergence
from kd_kernels.methods import arguments
from kd_kernels.methods.counting import row_options


def gkd(
    student: Tensor | Head,
    teacher: Tensor | Head | TopK,
    *,
    beta: float = 0.5,
    temperature: float | tuple[float, float] = 1.0,
    scale_t2: bool = False,
    **options: Any,
) -> Tensor:
    """beta KL(p, m) + (1 - beta) KL(q, m), m = beta p + (1 - beta) q (Agarwal et al. 2024, arXiv 2306.13649, eq. 1).

    beta = 0 is KL(p, q) and beta = 1 is KL(q, p). Whose text the rows are of is for `on_policy` to say.

    Args:
        student: logits `[..., V]` or a `Head`.
        teacher: logits, a `Head` or a `TopK` of the same rows.
        beta: of the teacher, between 0 and 1.
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
    return divergence(student, teacher, JSD(beta), temperature=temperature, scale_t2=scale_t2, **options)


def on_policy(step: int, lmbda: float = 0.5, *, seed: int = 0) -> bool:
    """Whether the batch of this step is of the student's own text: so it is with probability lmbda (Algorithm 1).

    The answer depends on its arguments alone: all processes of a run agree, and so does a run that was resumed.
    """
    arguments.share("lmbda", lmbda)
    return random.Random(f"{seed} {step}").random() < lmbda
