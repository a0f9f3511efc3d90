"""AKL's split of the vocabulary by the teacher (kd_kernels/divergences/akl.py), over slices.

The entry at which the teacher's mass crosses mu is found digit by digit: a pass gives the mass at each value of the
next eight bits of the logits' order, among entries that agree in the bits before. Masses are integers, so that no order
of summation shows.
"""

import torch
from torch import Tensor

_DIGIT = 8  # bits
_VALUES = 1 << _DIGIT
_MASS_UNIT = 2.0**52  # sums stay exact in float64 too
_GAP_UNIT = 2.0**61  # sums of |p - q| are at most 2
_BLOCK = 1 << 21  # entries gone over at a time: they take some hundred bytes each

_INTEGERS = {torch.bfloat16: torch.int16, torch.float16: torch.int16, torch.float32: torch.int32,
             torch.float64: torch.int64}  # fmt: skip


class HeadTail:
    """Of N rows, from their masses sum e^((z - top) / T); rows whose softmax does not exist give any number.

    Args:
        mu: the mass that the head may have.
        live: rows that are to be read.
        top_student, top_teacher, mass_student, mass_teacher: `[N]` float64.
        rates: 1 / T of student and teacher.
        columns: of the whole row.
    """

    def __init__(
        self, mu: float, live: Tensor, top_student: Tensor, top_teacher: Tensor, mass_student: Tensor,
        mass_teacher: Tensor, rates: tuple[float, float], columns: int,
    ) -> None:  # fmt: skip
        self._mu, self._live, self._columns = mu, live, columns
        self._student = (top_student, mass_student, rates[0])
        self._teacher = (top_teacher, mass_teacher, rates[1])
        rows = live.shape[0]
        zero = live.new_zeros(rows, dtype=torch.int64)
        self._target = zero  # mass that the head may have
        self._above = zero  # mass of the entries larger than any that agrees with the crossing so far
        self._crossing = zero  # its leading bits
        self._histogram = live.new_zeros(rows * _VALUES, dtype=torch.int64)
        self._seen_columns = self._digits = 0
        self._bits = _DIGIT  # of the order, known once a logit was seen
        self._ties = torch.zeros_like(zero)  # entries of the crossing's value so far
        self._gaps = live.new_zeros(2, rows, dtype=torch.int64)  # sum |p - q| over the head, over all

    @property
    def needs_selection(self) -> bool:
        return self._digits * _DIGIT < self._bits

    def select(self, teacher: Tensor) -> None:  # (N, W)
        self._bits = teacher.element_size() * 8
        shift = self._bits - _DIGIT * (self._digits + 1)
        for rows in _blocks(teacher):
            key = _order(teacher[rows])
            if self._digits == 0:
                mass, digit = self._masses(teacher[rows], rows), (key >> shift) + _VALUES // 2
            else:
                agrees = (key >> (shift + _DIGIT)) == self._crossing[rows, None]
                mass, digit = self._masses(teacher[rows], rows) * agrees, (key >> shift) & (_VALUES - 1)
            of_row = torch.arange(rows.start, rows.start + len(key), device=key.device)[:, None] * _VALUES
            self._histogram.scatter_add_(0, (of_row + digit).flatten(), mass.flatten())
        self._seen_columns += teacher.shape[1]
        if self._seen_columns == self._columns:
            self._take_digit()

    def _take_digit(self) -> None:
        mass = self._histogram.view(-1, _VALUES)
        if self._digits == 0:
            self._target = (self._mu * mass.sum(1).double()).floor().long()
        from_top = mass.flip(1).cumsum(1).flip(1)  # of this digit's value and larger ones
        over = self._above[:, None] + from_top > self._target[:, None]
        digit = (over.sum(1) - 1).clamp(min=0)
        self._above = self._above + (from_top - mass).gather(1, digit[:, None])[:, 0]
        self._crossing = digit - _VALUES // 2 if self._digits == 0 else self._crossing * _VALUES + digit
        self._histogram = torch.zeros_like(self._histogram)
        self._seen_columns = 0
        self._digits += 1

    def gaps(self, student: Tensor, teacher: Tensor) -> None:  # (N, W)
        """After the selection: adds |p - q| of a slice to the head's sum and to the sum of all."""
        for rows in _blocks(teacher):
            key, mass = _order(teacher[rows]), self._masses(teacher[rows], rows)
            crossing, above = self._crossing[rows, None], self._above[rows, None]
            tie = key == crossing
            rank = self._ties[rows, None] + tie.cumsum(1)
            # The first entry of all is head, however large.
            fits = (above + rank * mass <= self._target[rows, None]) | ((above == 0) & (rank == 1))
            p = _probabilities(teacher[rows], rows, *self._teacher)
            gap = (p - _probabilities(student[rows], rows, *self._student)).abs() * _GAP_UNIT
            gap = torch.where(self._live[rows, None], gap, 0.0).round().long()
            self._ties[rows] += tie.sum(1)
            self._gaps[0, rows] += (gap * ((key > crossing) | (tie & fits))).sum(1)
            self._gaps[1, rows] += gap.sum(1)

    def head_weight(self) -> Tensor:
        """g_head / (g_head + g_tail) [N] float64, 1/2 where p = q."""
        head, both = self._gaps.double()
        return torch.where(both > 0, head / both, 0.5)

    def _masses(self, teacher: Tensor, rows: slice) -> Tensor:
        mass = _probabilities(teacher, rows, *self._teacher) * _MASS_UNIT
        return torch.where(self._live[rows, None], mass, 0.0).round().long()


def _probabilities(logits: Tensor, rows: slice, top: Tensor, mass: Tensor, rate: float) -> Tensor:
    return ((logits.double() - top[rows, None]) * rate).exp() / mass[rows, None]


def _order(logits: Tensor) -> Tensor:
    """int64 in the order of the logits, zeros of both signs alike."""
    bits = (logits + 0.0).contiguous().view(_INTEGERS[logits.dtype]).long()
    return torch.where(bits < 0, bits ^ torch.iinfo(_INTEGERS[logits.dtype]).max, bits)


def _blocks(logits: Tensor) -> list[slice]:
    rows, columns = logits.shape
    step = max(1, _BLOCK // columns)
    return [slice(i, min(i + step, rows)) for i in range(0, rows, step)]
