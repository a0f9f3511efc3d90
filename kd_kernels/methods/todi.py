"""ToDi: token-wise distillation."""

from typing import Any

from torch import Tensor

from kd_kernels import Head, ToDi, TopK, divergence
from kd_kernels.methods import arguments
from kd_kernels.methods.counting import row_options
from kd_kernels.methods.cross_entropy import seqkd


def todi(
    student: Tensor | Head,
    teacher: Tensor | Head | TopK,
    labels: Tensor | None = None,
    *,
    kd_rate: float = 0.5,
    temperature: float | tuple[float, float] = 2.0,
    beta: float = 1.0,
    scale_t2: bool = False,
    **options: Any,
) -> Tensor:
    """(1 - kd_rate) CE + kd_rate ToDi (Jung et al. 2025, arXiv 2505.16297).

    ToDi = sum_v w_v p_v log(p_v / q_v) + (1 - w_v) q_v log(q_v / p_v), w_v = sigmoid(beta log(p_v / q_v)), which is a
    constant in the gradient: where the student gives an entry too little, the forward KL pulls it up, where it gives
    too much, the reverse KL pushes it down. CE = -log q(label), at temperature 1.

    Args:
        student: logits `[..., V]` or a `Head`.
        teacher: logits, a `Head` or a `TopK` of the same rows.
        labels: the token that each row predicts, integers `[...]`. Rows count where it differs from `ignore_index`.
            None for kd_rate = 1 alone, where it is not needed.
        kd_rate: between 0 and 1.
        temperature: of ToDi: T, or a pair (student's, teacher's).
        beta: sharpness of the weights. 0 is half of Jeffreys.
        scale_t2: multiply ToDi by T^2.
        **options: `mask`, `ignore_index`, `reduction`, `normalizer`, `vocab`, `backend`, `chunk_tokens` and
            `memory_budget`, as for `divergence`; `reduction` may be "sequence_mean" too.

    Returns:
        float32, or float64 for float64 logits.

    Raises:
        As `divergence`.
    """
    arguments.share("kd_rate", kd_rate)
    if labels is None and kd_rate != 1:
        raise ValueError(f"labels must be given unless kd_rate is 1, got kd_rate={kd_rate}")
    of_rows = row_options(student, {**options, "labels": labels})
    loss = kd_rate * divergence(student, teacher, ToDi(beta), temperature=temperature, scale_t2=scale_t2, **of_rows)
    return loss if kd_rate == 1 else loss + (1 - kd_rate) * seqkd(student, labels, **options)
