"""What the backends and `kd_kernels.chunks` tell each other about rows that arrive in slices of the vocabulary.

A tuple here names the rows of one contiguous tensor `[fields, N]`, in the order of csrc/cpu/slices.h. Logarithms are
natural, logits as they came, and

    d = ((z_s - shift_s) - ratio (z_t - shift_t)) k - gap        k = 1 / T_s, ratio = T_s / T_t
"""

from typing import NamedTuple

from torch import Tensor


class SliceStatistics(NamedTuple):
    """Of one slice, as if it were the whole row. A row of weight 0 has 0 everywhere.

    Attributes:
        top_student, top_teacher: the largest logit, at least -1e29.
        sum_student, sum_teacher: sum e^((z - top) / T); 0 where the slice has no mass, and then what follows is 0 too.
        shift_student, shift_teacher, gap: what d was measured from.
        residue: sum (q - p) at that gap, to relative precision: `gap` is right once log1p(residue) is added.
        forward, reverse: sum p (e^d - 1 - d) and sum q (e^-d - 1 + d) at that gap, to relative precision.
        entropy_student, entropy_teacher: in nats; 0 unless asked for.
    """

    top_student: Tensor
    top_teacher: Tensor
    sum_student: Tensor
    sum_teacher: Tensor
    shift_student: Tensor
    shift_teacher: Tensor
    gap: Tensor
    residue: Tensor
    forward: Tensor
    reverse: Tensor
    entropy_student: Tensor
    entropy_teacher: Tensor


class SliceState(NamedTuple):
    """Of the whole row, for the passes that follow.

    Attributes:
        top_student, top_teacher: the largest logit.
        inverse_student, inverse_teacher: 1 / sum e^((z - top) / T); NaN where a softmax does not exist.
        shift_student, shift_teacher, gap: what d is measured from.
        forward_weight, reverse_weight: of KL(p, q) and KL(q, p) in the row's divergence; family "kl" alone reads them.
        far: 1 where the divergence is so large that differences of probabilities keep it, else 0.
        h_sum: sum h, for the gradient.
    """

    top_student: Tensor
    top_teacher: Tensor
    inverse_student: Tensor
    inverse_teacher: Tensor
    shift_student: Tensor
    shift_teacher: Tensor
    gap: Tensor
    forward_weight: Tensor
    reverse_weight: Tensor
    far: Tensor
    h_sum: Tensor
