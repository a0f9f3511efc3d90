"""Bugs of rows that arrive in slices of the vocabulary; files are relative to kd_kernels/chunks."""

from bugs import Bug

import kd_kernels as kd

BUGS = [
    Bug("merge.py", "(part.top_student - top_s) * k, part.sum_student", "0 * part.top_student, part.sum_student",
        kd.ForwardKL(), "masses of different tops added up as they are"),
    Bug("merge.py", "(part.top_teacher - top_t) * (ratio * k)", "(part.top_teacher - top_t) * k", kd.ForwardKL(),
        "the teacher's masses at the student's temperature"),
    Bug("merge.py", "late = _log1p(part.residue)", "late = 0 * part.residue", kd.ReverseKL(),
        "the rounding of the gap is kept"),
    Bug("merge.py", "part.gap + shift + late", "part.gap - shift + late", kd.ReverseKL(), "the wrong sign of a shift"),
    Bug("merge.py", "p * _bend(delta)", "0 * p", kd.ForwardKL(), "the KL of the masses left out"),
    Bug("merge.py", "part.entropy_student - log_q", "part.entropy_student", kd.ForwardKL(),
        "the entropy of the masses left out"),
    Bug("slices.py", "gap=whole.gap - torch.where(near, 0.0, apart)", "gap=whole.gap", kd.ToDi(),
        "an offset of the logits counted twice"),
    Bug("slices.py", ">= _FAR_ROW", ">= 0", kd.JSD(), "the far form where it has no digits left"),
    Bug("slices.py", "h_sum = state.reverse_weight * self._whole.reverse", "h_sum = self._whole.reverse",
        kd.ForwardKL(), "sum h of the other KL"),
]  # fmt: skip
