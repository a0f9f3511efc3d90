"""BiLD: differences of the largest logits."""

from typing import Any

import torch
from torch import Tensor

from kd_kernels import Head, divergence
from kd_kernels import arguments as checks
from kd_kernels.methods.counting import split
from kd_kernels.methods.few_entries import largest_of_both
from kd_kernels.transport.arguments import count

_LARGEST_K = 1024  # half a million pairs


def bild(
    student: Tensor | Head,
    teacher: Tensor | Head,
    *,
    top_k: int = 8,
    temperature: float | tuple[float, float] = 3.0,
    vocab: str | int = "strict",
    backend: str = "auto",
    **options: Any,
) -> Tensor:
    """Bi-directional logits difference (Li et al. 2025, arXiv 2406.13555).

    With K_t the teacher's k likeliest entries in descending order, d_t and d_s the differences z_i - z_j, i before j in
    K_t, of the teacher's and of the student's logits, the teacher-led half is KL(softmax(d_t / T), softmax(d_s / T)).
    The student-led half is the same over K_s, the student's k likeliest. The loss is their sum.

    No softmax of the vocabulary is taken. From a `Head`, entries are searched in chunks of logits; the rest, gradients
    included, takes the 2 k rows of the weight that a token needs.

    Args:
        student: logits `[..., V]` or a `Head`.
        teacher: likewise, of the same rows.
        top_k: k, at least 2.
        temperature: T, or a pair (student's, teacher's).
        vocab: as for `divergence`.
        backend: of the KLs, as for `divergence`.
        **options: `mask`, `labels`, `ignore_index`, `reduction` and `normalizer`, as for `divergence`; `reduction` may
            be "sequence_mean" too.

    Returns:
        float32, or float64 for float64 logits.

    Raises:
        As `divergence`.
    """
    counting, _ = split(student, options, ())
    checks.sides(student, teacher)
    columns = checks.vocabulary(vocab, *checks.vocabularies(student, teacher))
    k = count("top_k", top_k, 2)
    if k > min(columns, _LARGEST_K):
        raise ValueError(f"top_k must be at most {min(columns, _LARGEST_K)}, got {k}")
    z_s, z_t = largest_of_both(student, teacher, k, columns, counting.rows)
    first, second = torch.triu_indices(k, k, 1, device=z_s.device)
    loss = 0
    for led in (slice(0, k), slice(k, 2 * k)):
        d_s, d_t = (z[:, led][:, first] - z[:, led][:, second] for z in (z_s, z_t))
        kl = divergence(d_s, d_t, temperature=temperature, reduction="none", backend=backend)
        loss = loss + kl
    return counting.reduce(loss)
