"""Texts that somebody sampled, as a loss sees them."""

from dataclasses import dataclass

from torch import Tensor

from kd_kernels import Head, TopK


@dataclass(frozen=True, eq=False)
class Samples:
    """What student and teacher predict along texts that one of the two has sampled.

    Attributes:
        student: logits `[..., V]` or a `Head`.
        teacher: logits, a `Head` or a `TopK` of the same rows.
        mask: rows that count, `[...]`: bool, or weights.
        labels: rows count where they differ from -100.
    """

    student: Tensor | Head
    teacher: Tensor | Head | TopK
    mask: Tensor | None = None
    labels: Tensor | None = None
