"""ATKD: tokens taught by how sure the teacher is of them."""

import math
from typing import Any

import torch
from torch import Tensor

from kd_kernels import Head, TopK, divergence, logprobs
from kd_kernels import arguments as checks
from kd_kernels.methods import arguments
from kd_kernels.methods.by_chunk import Rows, constant_rows, losses_by_chunk
from kd_kernels.methods.counting import split


def atkd(
    student: Tensor | Head,
    teacher: Tensor | Head,
    labels: Tensor,
    *,
    hard_share: float = 0.5,
    easy_weight: float = 0.2,
    temperature: float = 1.0,
    vocab: str | int = "strict",
    backend: str = "auto",
    chunk_tokens: int | None = None,
    ignore_index: int = -100,
    **options: Any,
) -> Tensor:
    """Autoregressive token-wise distillation with adaptive teaching modes (Zhong et al. 2024, arXiv 2402.11890).

    With y the target of a row, KL(p, q) = TKD + UnC DKD: TKD is the KL of (p_y, 1 - p_y) from (q_y, 1 - q_y), DKD that
    of the other entries, each side renormalised over them, and UnC = 1 - p_y is the teacher's uncertainty. The share of
    rows with the largest UnC is hard; they learn TKD + DKD, the easy ones DKD alone:

        easy_weight sum_easy DKD + (1 - easy_weight) sum_hard (TKD + DKD),   over the number of rows for "mean".

    DKD is taken of the entries themselves, not as (KL - TKD) / UnC, which loses all digits where UnC is small. Rows are
    copied a chunk at a time, to leave the target out; that is done again for the gradient.

    Args:
        student: logits `[..., V]` or a `Head`, V at least 2.
        teacher: likewise, of the same rows.
        labels: the target of each row, integers `[...]`. Rows count where it differs from `ignore_index` and is not
            negative.
        hard_share: of the rows that count, in this batch, between 0 and 1; rounded up to whole rows.
        easy_weight: between 0 and 1.
        temperature: divides both logits.
        vocab: as for `divergence`.
        backend: as for `divergence`.
        chunk_tokens: rows in a chunk.
        ignore_index: the label of rows that do not count.
        **options: `mask`, `reduction` and `normalizer`, as for `divergence`; `reduction` may be "sequence_mean" too.

    Returns:
        float32, or float64 for float64 logits.

    Raises:
        As `divergence`.
    """
    arguments.share("hard_share", hard_share)
    arguments.share("easy_weight", easy_weight)
    if "labels" in options:
        raise TypeError("labels are given twice")
    if not checks.is_number(temperature):
        raise TypeError(f"temperature must be a number, got {temperature!r}")
    checks.sides(student, teacher)
    columns = checks.vocabulary(vocab, *checks.vocabularies(student, teacher))
    if columns < 2:
        raise ValueError(f"of the vocabulary at least 2 entries must count, the target and another; got {columns}")
    checks.entries("labels", labels, checks.rows_of(student), columns)
    labels = torch.where(labels < 0, ignore_index, labels)  # there is no such target
    counting, _ = split(student, {**options, "labels": labels, "ignore_index": ignore_index}, ())
    counted = counting.rows
    with torch.no_grad():
        log_p = logprobs(
            teacher, labels, temperature=temperature, mask=counted.reshape(counting.shape), vocab=columns,
            backend=backend, chunk_tokens=chunk_tokens,
        ).reshape(-1)  # fmt: skip
    hard = _hard(-log_p.expm1(), counted, hard_share)
    targets, teacher_rows = labels.reshape(-1, 1), constant_rows(teacher)
    how = {"temperature": temperature, "reduction": "none", "backend": backend}

    def losses(x: Tensor, rows: Rows) -> Tensor:
        at = targets[rows]
        others = (z[:, :columns].scatter(1, at, -math.inf) for z in (x, teacher_rows(rows)))
        dkd = divergence(*others, "forward_kl", **how)
        target = TopK(at, log_p[rows][:, None], "bucket")
        tkd = divergence(x, target, "forward_kl", vocab=columns, mask=hard[rows], **how)
        return torch.where(hard[rows], (1 - easy_weight) * (tkd + dkd), easy_weight * dkd)

    return counting.reduce(losses_by_chunk(losses, student, counted, chunk_tokens))


def _hard(uncertainty: Tensor, counted: Tensor, share: float) -> Tensor:
    """Which rows are: of those that count the share with the largest uncertainty, of equals the first; bool (N,)."""
    order = torch.where(counted, uncertainty, -1).argsort(descending=True, stable=True)
    rank = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
    return counted & (rank < share * counted.sum())
