"""`kd_kernels.l1_cost`: distances between distributions over the vocabulary."""

import torch
from torch import Tensor

from kd_kernels import ops
from kd_kernels.arguments import temperatures, vocabulary
from kd_kernels.backends import reference, select
from kd_kernels.reduction import sum_dtype
from kd_kernels.transport import arguments


def l1_cost(
    student: Tensor,
    teacher: Tensor,
    *,
    temperature: float | tuple[float, float] = 1.0,
    student_mask: Tensor | None = None,
    teacher_mask: Tensor | None = None,
    vocab: str | int = "strict",
    softmax: bool = True,
    backend: str = "auto",
) -> Tensor:
    """C_ij = sum_v |q_iv - p_jv|, q = softmax(student / T), p = softmax(teacher / T): twice the total variation.

    It reads (n + m) V logits and never holds n m V differences, forward or backward. Gradients go to the student; for
    the teacher's, swap the sides. Where q_iv = p_jv exactly, the derivative of |.| is taken for one of [-1, 1].

    Args:
        student: logits `[..., n, V]`, float32, bfloat16, float16 or float64.
        teacher: logits `[..., m, V']` of the same batch.
        temperature: T, or a pair (student's, teacher's).
        student_mask: rows that count, bool or integer `[..., n]`. Others are not read; their costs are 0.
        teacher_mask: likewise `[..., m]`.
        vocab: "strict" wants equal vocabularies; "common" compares the first min(V, V') columns, a number n the first
            n, each side normalised over them.
        softmax: False for inputs that are distributions, or any vectors, already: nothing is done to them.
        backend: "auto", "cpu", "cuda", "triton" or "reference".

    Returns:
        `[..., n, m]`, float32, or float64 for float64 logits.

    Raises:
        ValueError: a shape, range, device or name that does not fit.
        TypeError: a dtype or type that does not fit.
        RuntimeError: a backend that is not available in this installation.
    """
    arguments.distributions(student, teacher, 2)
    columns = vocabulary(vocab, student.shape[-1], teacher.shape[-1])
    t_student, t_teacher = temperatures(temperature)
    if not softmax and (t_student, t_teacher) != (1.0, 1.0):
        raise ValueError(f"temperature divides logits; without softmax it must be 1, got {temperature!r}")
    masks = [
        arguments.row_mask(name, mask, x)
        for name, mask, x in (("student_mask", student_mask, student), ("teacher_mask", teacher_mask, teacher))
    ]
    chosen = select.choose(backend, student.device, (student.dtype, teacher.dtype), ("l1_cost",))
    batch, (n, m) = student.shape[:-2], (student.shape[-2], teacher.shape[-2])
    size = batch.numel()
    masks = [None if x is None else x.reshape(size, k) for x, k in zip(masks, (n, m), strict=True)]
    student, teacher = student.reshape(size, n, student.shape[-1]), teacher.reshape(size, m, teacher.shape[-1]).detach()
    spec = (*masks, [1 / t_student, 1 / t_teacher], columns, softmax)
    if chosen == "reference":
        cost = reference.l1_cost(student, teacher, *spec, sum_dtype(student.dtype))
    elif student.requires_grad and torch.is_grad_enabled():
        cost = _L1Cost.apply(student, teacher, spec, chosen)
    else:
        cost, _ = ops.l1_cost(student, teacher, *spec, chosen)
    return cost.reshape(*batch, n, m)


class _L1Cost(torch.autograd.Function):
    @staticmethod
    def forward(ctx, student, teacher, spec, backend):
        cost, statistics = ops.l1_cost(student, teacher, *spec, backend)
        student_mask, teacher_mask, *ctx.spec = spec
        ctx.save_for_backward(student, teacher, student_mask, teacher_mask, statistics)
        ctx.backend = backend
        return cost

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, upstream):
        student, teacher, student_mask, teacher_mask, statistics = ctx.saved_tensors
        gradient = ops.l1_cost_backward(
            upstream, statistics, student, teacher, student_mask, teacher_mask, *ctx.spec, ctx.backend
        )
        return gradient, None, None, None
