"""Cross-entropy of given tokens, and sequence-level distillation, which is that of the teacher's samples."""

from typing import Any

import torch
from torch import Tensor

from kd_kernels import Head, TopK, arguments, divergence
from kd_kernels.methods.counting import row_options
from kd_kernels.reduction import sum_dtype


def seqkd(student: Tensor | Head, ids: Tensor, *, temperature: float = 1.0, **options: Any) -> Tensor:
    """-log q(y), y the teacher's own text (SeqKD, Kim and Rush 2016): f-DISTILL's KL from a single sample of each row.

    Args:
        student: logits `[..., V]` or a `Head`.
        ids: the token that each row predicts, integers `[...]`. Rows count where it differs from `ignore_index`.
        temperature: divides the student's logits.
        **options: `mask`, `ignore_index`, `reduction`, `normalizer`, `vocab`, `backend`, `chunk_tokens` and
            `memory_budget`, as for `divergence`; `reduction` may be "sequence_mean" too.

    Returns:
        float32, or float64 for float64 logits.

    Raises:
        As `divergence`.
    """
    if "labels" in options:
        raise TypeError("seqkd takes no labels: they are the ids")
    arguments.dense_side("student", student)
    rows = arguments.rows_of(student)
    arguments.entries("ids", ids, rows, arguments.vocabularies(student, student)[0])
    certain = torch.zeros_like(ids, dtype=sum_dtype(rows.dtype))
    text = TopK(ids[..., None], certain[..., None], "truncate")
    return divergence(student, text, temperature=temperature, **row_options(student, {**options, "labels": ids}))
