"""Divergences of rows that arrive in slices of the vocabulary, so that `[N, V]` is never held.

Whoever projects hidden states hands over the logits of both sides slice by slice, once for each pass:

    rows = SlicedRows(...)
    for s, t in slices: rows.statistics(s, t)
    rows.normalise()
    while rows.needs_selection:
        for s, t in slices: rows.select(t)
    if rows.needs_sums:
        for s, t in slices: rows.sums(s, t)
    losses, entropy = rows.finish()
    for s, t in slices: rows.gradient(s, t, out=s)

A projection costs far more than what is done here with its logits, so what counts is the number of passes. The KL kinds
have their value after one and their gradient after two, the others after two and three. AKL needs the teacher alone
twice more for logits of 16 bits, four times for float32.
"""

import math
from types import ModuleType

import torch
from torch import Tensor

from kd_kernels.chunks.head_tail import HeadTail
from kd_kernels.chunks.merge import Fold, Whole, as_slice, merge, total
from kd_kernels.divergences import Kernel
from kd_kernels.reduction import sum_dtype
from kd_kernels.slice_rows import SliceState

# log q - log p has this bound in the gradient of a divergence that is infinite (csrc/include/kd/divergence.h).
_INFINITE_MEAN = 1e30

# A divergence of this size is a far row (kFarRow in csrc/cpu/row_kernel.h).
_FAR_ROW = 1 / 64

# Logits of the same height are subtracted as they are, others each from its own top (set_gap in row_sweeps.h).
_NEAR_HEIGHT = 64.0


class SlicedRows:
    """Losses `weight scale D` of N rows, their entropies and gradients, as `ops.divergence` gives them for whole rows.

    Slices may differ in width and must come in the same order in every pass. A row of weight 0 is not read. Each
    pass keeps a few numbers for each row.

    Args:
        rows: N.
        family, params: the kernel of the divergence (`Divergence.kernel`).
        inverse_temperatures: of student and teacher.
        scale: factor of losses and gradients.
        weight: `[N]` or None.
        backend: its module.
        with_entropy: `finish` gives entropies too.
        dtype: of the student's logits. The teacher's may differ, except that both or neither are float64.
    """

    def __init__(
        self,
        rows: int,
        family: str,
        params: tuple[float, float],
        inverse_temperatures: tuple[float, float],
        scale: float,
        weight: Tensor | None,  # (N,)
        backend: ModuleType,
        with_entropy: bool,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        # AKL is a sum of both KLs, with weights that each row finds out.
        self._mu = params[0] if family == "akl" else None
        self._family, self._params = ("kl", (0.5, 0.5)) if family == "akl" else (family, params)
        self._head_tail: HeadTail | None = None
        self._inverse_temperatures, self._scale = inverse_temperatures, scale
        self._weight, self._with_entropy = weight, with_entropy
        self._kernels = backend
        self._real = sum_dtype(dtype)
        self._live = torch.ones(rows, dtype=torch.bool, device=device) if weight is None else weight != 0
        # As the kernels round them: a large offset of the logits would show the difference.
        student, teacher = inverse_temperatures
        self._k, self._ratio = torch.tensor([student, teacher / student], dtype=self._real).tolist()
        self._columns = 0
        self._statistics = Fold(lambda parts: as_slice(self._merge(parts)))  # (fields, N) of each slice
        self._sums = Fold(total)  # (2, N) of each slice

    @property
    def needs_selection(self) -> bool:
        return self._head_tail is not None and self._head_tail.needs_selection

    @property
    def needs_sums(self) -> bool:
        return self._head_tail is not None or self._family != "kl"

    def statistics(self, student: Tensor, teacher: Tensor) -> None:
        """First pass: logits of one slice, `[N, W]` each."""
        self._columns += student.shape[1]
        self._statistics.add(
            self._kernels.slice_statistics(
                student, teacher, self._weight, self._inverse_temperatures, self._with_entropy
            ).double()
        )

    def _merge(self, parts: Tensor) -> Whole:
        return merge(parts, self._k, self._ratio)

    def normalise(self) -> None:
        """The first pass is over."""
        whole = self._merge(self._statistics.parts())
        self._whole = whole
        self._defined = (1 / whole.mass_student).isfinite() & (1 / whole.mass_teacher).isfinite()
        apart = (whole.top_student - self._ratio * whole.top_teacher) * self._k
        near = apart.abs() < _NEAR_HEIGHT
        self._state = torch.stack(
            SliceState(
                top_student=whole.top_student,
                top_teacher=whole.top_teacher,
                inverse_student=torch.where(self._defined, 1 / whole.mass_student, math.nan),
                inverse_teacher=torch.where(self._defined, 1 / whole.mass_teacher, math.nan),
                shift_student=torch.where(near, 0.0, whole.top_student),
                shift_teacher=torch.where(near, 0.0, whole.top_teacher),
                gap=whole.gap - torch.where(near, 0.0, apart),
                forward_weight=torch.full_like(whole.gap, self._params[0]),
                reverse_weight=torch.full_like(whole.gap, self._params[1]),
                far=(Kernel(self._family, self._params).curvature * whole.forward >= _FAR_ROW).double(),
                h_sum=torch.zeros_like(whole.gap),
            )
        )

        if self._mu is not None:
            self._head_tail = HeadTail(
                self._mu, self._live & self._defined, whole.top_student, whole.top_teacher, whole.mass_student,
                whole.mass_teacher, (self._k, self._ratio * self._k), self._columns,
            )  # fmt: skip

    def select(self, teacher: Tensor) -> None:
        """While `needs_selection`: the teacher's slices again."""
        self._head_tail.select(teacher)

    def sums(self, student: Tensor, teacher: Tensor) -> None:
        """Where `needs_sums`: the same slices again."""
        if self._head_tail is not None:
            self._head_tail.gaps(student, teacher)
            return
        self._sums.add(
            self._kernels.slice_sums(
                student, teacher, self._weight, self._family, self._params, self._inverse_temperatures, self._state
            ).double()
        )

    def finish(self) -> tuple[Tensor, Tensor | None]:
        """-> losses [N], entropies of student and teacher [2, N]; float32, or float64 for float64 logits."""
        if self._head_tail is not None:
            head = self._head_tail.head_weight()
            self._state[SliceState._fields.index("forward_weight")] = head
            self._state[SliceState._fields.index("reverse_weight")] = 1 - head
        if self._family == "kl":
            state = SliceState(*self._state)
            # A weight of zero leaves its side out even where that is infinite.
            value = torch.where(state.forward_weight > 0, state.forward_weight * self._whole.forward, 0.0)
            value += torch.where(state.reverse_weight > 0, state.reverse_weight * self._whole.reverse, 0.0)
            h_sum = state.reverse_weight * self._whole.reverse.clamp(max=_INFINITE_MEAN)
        else:
            value, h_sum = total(self._sums.parts())
        self._state[SliceState._fields.index("h_sum")] = h_sum
        value = self._scale * value.clamp(min=0)  # before the weight, which may be negative
        losses = self._of_rows(value if self._weight is None else self._weight * value)
        if not self._with_entropy:
            return losses, None
        return losses, torch.stack([self._of_rows(h) for h in self._whole[-2:]])

    def gradient(
        self,
        student: Tensor,  # (N, W)
        teacher: Tensor,
        out: Tensor,
        upstream: Tensor | None = None,  # (N,)
        normalizer: Tensor | None = None,  # ()
    ) -> None:
        """Last pass: writes upstream / normalizer times the gradient of the losses to `out`, which may be `student`."""
        factor = torch.full_like(self._whole.gap, self._scale * self._inverse_temperatures[0])
        for x in (self._weight, upstream):
            factor = factor if x is None else factor * x
        if normalizer is not None:
            factor = factor / normalizer
        self._kernels.slice_gradient(
            student, teacher, self._weight, self._family, self._params, self._inverse_temperatures, self._state,
            factor, out,
        )  # fmt: skip

    def _of_rows(self, x: Tensor) -> Tensor:
        """x, NaN where a softmax does not exist, and 0 where the row does not count."""
        return torch.where(self._live, torch.where(self._defined, x, math.nan), 0.0).to(self._real)
