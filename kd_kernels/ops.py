"""The ops, `torch.ops.kd_kernels.*`: schemas, fakes and implementations. The only file that knows torch.library.

Each op runs on the backend its last argument names. They are opaque to the compiler, allocate their own outputs, never
synchronise with the device and carry no autograd of their own: kd_kernels/autograd.py differentiates.
"""

import torch

from kd_kernels.backends import select

_ROWS = "str family, float[] params, float[] inverse_temperatures, float scale, SymInt columns"

torch.library.define(
    "kd_kernels::divergence",
    f"(Tensor student, Tensor teacher, Tensor? weight, Tensor? normalizer, {_ROWS}, str reduction, "
    "bool with_gradient, bool with_entropy, str backend) -> (Tensor loss, Tensor gradient, Tensor entropy)",
    tags=torch.Tag.pt2_compliant_tag,
)
torch.library.define(
    "kd_kernels::divergence_backward",
    f"(Tensor upstream, Tensor student, Tensor teacher, Tensor? weight, {_ROWS}, str backend) -> Tensor gradient",
    tags=torch.Tag.pt2_compliant_tag,
)


@torch.library.impl("kd_kernels::divergence", "CompositeExplicitAutograd")
def _divergence(*args):
    return select.implementation(args[-1]).divergence(*args[:-1])


@torch.library.impl("kd_kernels::divergence_backward", "CompositeExplicitAutograd")
def _divergence_backward(*args):
    return select.implementation(args[-1]).divergence_backward(*args[:-1])


@torch.library.register_fake("kd_kernels::divergence")
def _divergence_fake(student, teacher, weight, normalizer, family, params, inverse_temperatures, scale, columns,
                     reduction, with_gradient, with_entropy, backend):  # fmt: skip
    rows, width = student.shape
    real = torch.float64 if student.dtype == torch.float64 else torch.float32
    loss = student.new_empty((rows,) if reduction == "none" else (), dtype=real)
    gradient = student.new_empty((rows, width) if with_gradient else (0,))
    entropy = student.new_empty((2, rows) if with_entropy else (0,), dtype=real)
    return loss, gradient, entropy


@torch.library.register_fake("kd_kernels::divergence_backward")
def _divergence_backward_fake(upstream, student, *args):
    return student.new_empty(student.shape)


divergence = torch.ops.kd_kernels.divergence.default
divergence_backward = torch.ops.kd_kernels.divergence_backward.default
