"""What a loss can report beside itself."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Stats:
    """Statistics of the rows that count.

    Attributes:
        n_valid: number of rows of non-zero weight, 0-d int64.
        student_entropy: -sum q log q in nats, of the tempered student: per row for `reduction="none"` (0 where the row
            does not count), otherwise reduced as the loss is, with the same weights and normaliser.
        teacher_entropy: -sum p log p likewise.
        student_mass: probability that the student gives the entries of a `TopK` teacher, reduced likewise; None for
            others. Entropies are then those of the distributions compared, bucket included.
        teacher_mass: probability of these entries under the teacher.
        overlap: share of these K entries that are among the student's K likeliest.
    """

    n_valid: Tensor
    student_entropy: Tensor
    teacher_entropy: Tensor
    student_mass: Tensor | None = None
    teacher_mass: Tensor | None = None
    overlap: Tensor | None = None
