"""KDRL: estimates of a KL from sampled tokens."""

from typing import Any

import torch
from torch import Tensor

from kd_kernels import Head, logprobs
from kd_kernels import arguments as checks
from kd_kernels.methods.counting import Counting, split
from kd_kernels.reduction import sum_dtype
from kd_kernels.transport.arguments import choice

ESTIMATORS = ("k1", "k2", "k3")

# Below, e^R - R - 1 loses digits; its series to the tenth power has all of float64.
_SMALL = 0.1


def kl_estimate(
    student_logprobs: Tensor,
    teacher_logprobs: Tensor,
    estimator: str = "k2",
    *,
    mask: Tensor | None = None,
    reduction: str = "mean",
    normalizer: float | Tensor | None = None,
) -> Tensor:
    """KL(q, p) from the log-probabilities of a token that the student sampled (Xu et al. 2025, arXiv 2506.02208).

    With R = log p - log q of that token:

    * "k1": -R. Its mean is the KL; that of its gradient is 0, so that it is nothing to train with.
    * "k2": R^2 / 2. The mean of its gradient is the gradient of the KL: the paper's choice.
    * "k3": e^R - R - 1. Its mean is the KL, never negative; that of its gradient is the gradient of KL(p, q).

    Args:
        student_logprobs: `[...]`, log q of the tokens, float32, bfloat16, float16 or float64.
        teacher_logprobs: likewise, log p; a constant.
        estimator: "k1", "k2" or "k3".
        mask: tokens that count, `[...]`: bool, or weights. The others may hold anything.
        reduction: "mean", "sum", "none", or "sequence_mean", over the tokens of a sequence and then over sequences.
        normalizer: for "mean", as for `divergence`.

    Returns:
        float32, or float64 for float64 log-probabilities.

    Raises:
        ValueError: a shape, range, device or name that does not fit.
        TypeError: a dtype or type that does not fit.
    """
    choice("estimator", estimator, ESTIMATORS)
    for name, x in (("student_logprobs", student_logprobs), ("teacher_logprobs", teacher_logprobs)):
        if not isinstance(x, Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(x).__name__}")
        checks.real_dense(name, x)
    rows = student_logprobs[..., None]
    checks.like_rows("teacher_logprobs", teacher_logprobs, rows)
    checks.same_precision(student_logprobs, teacher_logprobs, ("student_logprobs", "teacher_logprobs"))
    counting = Counting.of(rows, mask, reduction=reduction, normalizer=normalizer)
    return counting.reduce(_estimates(student_logprobs, teacher_logprobs.detach(), estimator, counting))


def kdrl(
    student: Tensor | Head,
    teacher: Tensor | Head,
    ids: Tensor,
    *,
    estimator: str = "k2",
    temperature: float = 1.0,
    ignore_index: int = -100,
    **options: Any,
) -> Tensor:
    """`kl_estimate` of the tokens that the student sampled, from logits or heads: KDRL's distillation term.

    Args:
        student: logits `[..., V]` or a `Head`.
        teacher: likewise, of the same rows.
        ids: the token that each row predicts, integers `[...]`. Rows count where it differs from `ignore_index`.
        estimator: "k1", "k2" or "k3".
        temperature: divides both logits: that of the sampling.
        ignore_index: the id of rows that do not count.
        **options: `mask`, `reduction`, `normalizer`, `vocab`, `backend`, `chunk_tokens` and `memory_budget`, as for
            `divergence`; `reduction` may be "sequence_mean" too.

    Returns:
        float32, or float64 for float64 logits.

    Raises:
        As `divergence`.
    """
    choice("estimator", estimator, ESTIMATORS)
    if "labels" in options:
        raise TypeError("kdrl takes no labels: they are the ids")
    counting, how = split(student, {**options, "labels": ids, "ignore_index": ignore_index})
    checks.sides(student, teacher)
    sizes = checks.vocabularies(student, teacher)
    how["vocab"] = checks.vocabulary(how.get("vocab", "strict"), *sizes)
    how |= {"temperature": temperature, "mask": counting.rows.reshape(counting.shape)}
    with torch.no_grad():
        teacher_logprobs = logprobs(teacher, ids, **how)
    return counting.reduce(_estimates(logprobs(student, ids, **how), teacher_logprobs, estimator, counting))


def _estimates(student: Tensor, teacher: Tensor, estimator: str, counting: Counting) -> Tensor:
    """Of each token, (N,); 0 of those that do not count."""
    student, teacher = (x.reshape(-1).to(sum_dtype(x.dtype)) for x in (student, teacher))
    if counting.rows is not None:
        student, teacher = (torch.where(counting.rows, x, 0) for x in (student, teacher))
    r = teacher - student
    if estimator == "k1":
        return -r
    if estimator == "k2":
        return r * r / 2
    small = r.abs() < _SMALL
    near, far = torch.where(small, r, 0), torch.where(small, 0, r)
    series = torch.ones_like(r)
    for n in range(10, 2, -1):
        series = 1 + near / n * series
    return torch.where(small, near * near / 2 * series, far.expm1() - far)
