"""Ops of losses that are a sum over the vocabulary."""

import torch

from kd_kernels.backends import select
from kd_kernels.chunks import run as chunks
from kd_kernels.reduction import sum_dtype

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
# A side: logits; or hidden states with weight, bias, [scale, softcap]. The teacher's may be log-probabilities of ids.
_SIDE = "Tensor {0}, Tensor? {0}_weight, Tensor? {0}_bias, float[] {0}_transform"
torch.library.define(
    "kd_kernels::chunked_divergence",
    f"({_SIDE.format('student')}, {_SIDE.format('teacher')}, Tensor? ids, str tail, Tensor? weight, Tensor? upstream, "
    f"Tensor? normalizer, {_ROWS}, str reduction, bool[] wanted, bool with_stats, bool on_device, "
    "SymInt? chunk_tokens, SymInt? memory_budget, str backend) -> (Tensor loss, Tensor student_gradient, "
    "Tensor weight_gradient, Tensor bias_gradient, Tensor stats)",
    tags=torch.Tag.pt2_compliant_tag,
)


@torch.library.impl("kd_kernels::divergence", "CompositeExplicitAutograd")
def _divergence(*args):
    return select.implementation(args[-1]).divergence(*args[:-1])


@torch.library.impl("kd_kernels::divergence_backward", "CompositeExplicitAutograd")
def _divergence_backward(*args):
    return select.implementation(args[-1]).divergence_backward(*args[:-1])


@torch.library.impl("kd_kernels::chunked_divergence", "CompositeExplicitAutograd")
def _chunked_divergence(*args):
    return chunks.divergence(*args)


@torch.library.register_fake("kd_kernels::divergence")
def _divergence_fake(student, teacher, weight, normalizer, family, params, inverse_temperatures, scale, columns,
                     reduction, with_gradient, with_entropy, backend):  # fmt: skip
    rows, width = student.shape
    real = sum_dtype(student.dtype)
    loss = student.new_empty((rows,) if reduction == "none" else (), dtype=real)
    gradient = student.new_empty((rows, width) if with_gradient else (0,))
    entropy = student.new_empty((2, rows) if with_entropy else (0,), dtype=real)
    return loss, gradient, entropy


@torch.library.register_fake("kd_kernels::divergence_backward")
def _divergence_backward_fake(upstream, student, *args):
    return student.new_empty(student.shape)


@torch.library.register_fake("kd_kernels::chunked_divergence")
def _chunked_divergence_fake(student, student_weight, student_bias, student_transform, teacher, teacher_weight,
                             teacher_bias, teacher_transform, ids, tail, weight, upstream, normalizer, family, params,
                             inverse_temperatures, scale, columns, reduction, wanted, with_stats, on_device,
                             chunk_tokens, memory_budget, backend):  # fmt: skip
    rows = student.shape[0]
    real = sum_dtype(student.dtype)
    gradients = (
        x.new_empty(x.shape) if wants else student.new_empty(0)
        for x, wants in zip((student, student_weight, student_bias), wanted, strict=True)
    )  # fmt: skip
    stats = student.new_empty((2 if ids is None else 5, rows) if with_stats else (0, 0), dtype=real)
    return student.new_empty((rows,) if reduction == "none" else (), dtype=real), *gradients, stats


divergence = torch.ops.kd_kernels.divergence.default
divergence_backward = torch.ops.kd_kernels.divergence_backward.default
chunked_divergence = torch.ops.kd_kernels.chunked_divergence.default
