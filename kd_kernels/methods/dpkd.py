"""DPKD: the teacher's choice against the student's."""

from typing import Any

from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from kd_kernels import Head
from kd_kernels import arguments as checks
from kd_kernels.methods import arguments
from kd_kernels.methods.counting import split
from kd_kernels.methods.few_entries import largest_of_both


def dpkd(
    student: Tensor | Head,
    teacher: Tensor | Head,
    *,
    beta: float = 0.1,
    vocab: str | int = "strict",
    **options: Any,
) -> Tensor:
    """-log sigmoid(beta [log q(y_t) / q(y_s) - log p(y_t) / p(y_s)]) (Li et al. 2024, arXiv 2406.19774), by tokens.

    y_t and y_s are the likeliest entries of teacher and student; the teacher's stands as what is preferred. The
    normalisers cancel: four logits of a row are all that is needed, and two get a gradient. Where both choose alike the
    loss is log 2, without a gradient.

    Args:
        student: logits `[..., V]` or a `Head`.
        teacher: likewise, of the same rows.
        beta: how much a difference counts.
        vocab: as for `divergence`.
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
    arguments.factor("beta", beta)
    z_s, z_t = largest_of_both(student, teacher, 1, columns, counting.rows)
    margin = (z_s[:, 0] - z_s[:, 1]) - (z_t[:, 0] - z_t[:, 1])
    return counting.reduce(-F.logsigmoid(beta * margin))
