"""The op of transport within one row. It has no backends: its kernels are PyTorch's."""

import torch

from kd_kernels import smoothed_tvd as formula
from kd_kernels.reduction import sum_dtype

# factor (N,): what each row's gradient is multiplied by; a row of factor 0 is not read.
torch.library.define(
    "kd_kernels::smoothed_tvd",
    "(Tensor student, Tensor teacher, Tensor? factor, float[] inverse_temperatures, float eps, int iterations, "
    "bool with_gradient) -> (Tensor loss, Tensor gradient)",
    tags=torch.Tag.pt2_compliant_tag,
)


@torch.library.impl("kd_kernels::smoothed_tvd", "CompositeExplicitAutograd")
def _smoothed_tvd(*args):
    return formula.smoothed_tvd(*args)


@torch.library.register_fake("kd_kernels::smoothed_tvd")
def _smoothed_tvd_fake(student, teacher, factor, inverse_temperatures, eps, iterations, with_gradient):
    loss = student.new_empty(student.shape[0], dtype=sum_dtype(student.dtype))
    return loss, student.new_empty(student.shape if with_gradient else (0,))


smoothed_tvd = torch.ops.kd_kernels.smoothed_tvd.default
