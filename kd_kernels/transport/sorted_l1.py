"""`kd_kernels.sorted_l1`: distance of sorted distributions, whatever their vocabularies."""

import torch
from torch import Tensor

from kd_kernels import ops
from kd_kernels.arguments import normalizer as checked_normalizer
from kd_kernels.arguments import reduction as checked_reduction
from kd_kernels.arguments import row_weights, temperatures
from kd_kernels.backends import reference, select
from kd_kernels.reduction import count, reduce, sum_dtype
from kd_kernels.transport import arguments


def sorted_l1(
    student: Tensor,
    teacher: Tensor,
    *,
    temperature: float | tuple[float, float] = 1.0,
    mask: Tensor | None = None,
    labels: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    normalizer: float | Tensor | None = None,
    top_k: int | None = None,
    backend: str = "auto",
) -> Tensor:
    """sum_k |q_(k) - p_(k)| of each row: both distributions in descending order, the shorter followed by zeros.

    The Wasserstein distance between the sets of probabilities, which needs no common vocabulary (ULD, Boizard et al.
    2024, eq. 6). Gradients go to the student, through its permutation.

    Args:
        student: logits `[..., V]`, float32, bfloat16, float16 or float64.
        teacher: logits `[..., V']` of the same rows.
        temperature: T, or a pair (student's, teacher's).
        mask, labels, ignore_index, reduction, normalizer: as for `divergence`.
        top_k: compare the k likeliest of each side alone.
        backend: "auto", "cpu", "cuda", "triton" or "reference".

    Returns:
        0-d, or `[...]` for reduction "none"; float32, or float64 for float64 logits.

    Raises:
        ValueError: a shape, range, device or name that does not fit.
        TypeError: a dtype or type that does not fit.
        RuntimeError: a backend that is not available in this installation.
    """
    arguments.distributions(student, teacher, 1)
    t_student, t_teacher = temperatures(temperature)
    checked_reduction(reduction)
    divisor = checked_normalizer(normalizer, reduction, student)
    real = sum_dtype(student.dtype)
    weight = row_weights(mask, labels, ignore_index, student, real)
    limit = max(student.shape[-1], teacher.shape[-1])
    if top_k is not None:
        limit = min(limit, arguments.count("top_k", top_k))
    chosen = select.choose(backend, student.device, (student.dtype, teacher.dtype), ("sorted_l1",))
    shape = student.shape[:-1]
    rows = shape.numel()
    student, teacher = student.reshape(rows, student.shape[-1]), teacher.reshape(rows, teacher.shape[-1]).detach()
    inverse_temperatures = [1 / t_student, 1 / t_teacher]
    if chosen == "reference":
        counted = None if weight is None else weight != 0
        losses = reference.sorted_l1(student, teacher, counted, inverse_temperatures, limit, real)
    elif student.requires_grad and torch.is_grad_enabled():
        if reduction == "none":
            losses = _Rows.apply(student, teacher, weight, inverse_temperatures, limit, chosen)
        else:
            # The gradient comes with the value, in the size the reduction gives it.
            share = torch.ones_like(student[:, 0], dtype=real) if weight is None else weight
            if reduction == "mean":
                share = share / (count(weight, share).clamp(min=1) if divisor is None else divisor)
            return _Reduced.apply(student, teacher, share, inverse_temperatures, limit, chosen)
    else:
        losses, _ = ops.sorted_l1(student, teacher, weight, inverse_temperatures, limit, False, chosen)
    loss = reduce(losses, weight, reduction, divisor)
    return loss.reshape(shape) if reduction == "none" else loss


class _Reduced(torch.autograd.Function):
    """-> sum over rows of share times loss, 0-d."""

    @staticmethod
    def forward(ctx, student, teacher, share, inverse_temperatures, limit, backend):
        rows, gradient = ops.sorted_l1(student, teacher, share, inverse_temperatures, limit, True, backend)
        ctx.save_for_backward(gradient)
        return torch.where(share != 0, share * rows, 0).sum()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, upstream):
        (gradient,) = ctx.saved_tensors
        return gradient * upstream.to(gradient.dtype), None, None, None, None, None


class _Rows(torch.autograd.Function):
    """-> losses of rows (N,), 0 where the weight is."""

    @staticmethod
    def forward(ctx, student, teacher, weight, inverse_temperatures, limit, backend):
        rows, _ = ops.sorted_l1(student, teacher, weight, inverse_temperatures, limit, False, backend)
        ctx.save_for_backward(student, teacher, weight)
        ctx.spec = inverse_temperatures, limit, backend
        return rows

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, upstream):
        student, teacher, weight = ctx.saved_tensors
        inverse_temperatures, limit, backend = ctx.spec
        factor = upstream if weight is None else torch.where(weight != 0, upstream, 0)
        _, gradient = ops.sorted_l1(student, teacher, factor, inverse_temperatures, limit, True, backend)
        return gradient, None, None, None, None, None
