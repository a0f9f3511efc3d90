"""The losses: `kd_kernels.divergence`."""

import torch
from torch import Tensor

from kd_kernels import arguments, ops
from kd_kernels.autograd import ReducedDivergence, RowDivergence, Spec
from kd_kernels.backends import reference, select
from kd_kernels.divergences import Divergence, resolve
from kd_kernels.reduction import count, reduce
from kd_kernels.stats import Stats


def divergence(
    student: Tensor,
    teacher: Tensor,
    kind: str | Divergence = "forward_kl",
    *,
    temperature: float | tuple[float, float] = 1.0,
    scale_t2: bool = False,
    mask: Tensor | None = None,
    labels: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    normalizer: float | Tensor | None = None,
    vocab: str | int = "strict",
    return_stats: bool = False,
    teacher_grad: bool = False,
    backend: str = "auto",
    **params: float,
) -> Tensor | tuple[Tensor, Stats]:
    """Divergence between the next-token distributions of a teacher and a student, with its gradient.

    With p = softmax(teacher / T) and q = softmax(student / T), each row of logits gives D(p, q). A reduced loss
    computes its gradient along with its value and keeps nothing else: beside the two logits tensors, the gradient is
    the only tensor of their size.

    Nothing is added that was not asked for: no shift of labels, no cross-entropy term, no T^2.

    Args:
        student: logits `[..., V]`, float32, bfloat16, float16 or float64. Gradients go here.
        teacher: logits `[..., V]` of the same rows.
        kind: a name of the table in the documentation, with its parameters as keywords (`kind="jsd", beta=0.1`), or an
            object that carries them (`kd_kernels.JSD(0.1)`).
        temperature: T, or a pair (student's, teacher's).
        scale_t2: multiply by T^2 (by the product of the two temperatures), which keeps the size of gradients.
        mask: rows that count, `[...]`: bool, or weights. A row of weight 0 is not read; it may hold NaN.
        labels: rows count where labels `[...]` differ from `ignore_index`; they are used for nothing else. With `mask`
            both must agree.
        reduction: "mean" is the weighted sum over the number of rows that count, "sum" the weighted sum, "none" the
            weighted losses of the rows, `[...]`.
        normalizer: for "mean", a number or 0-d tensor in place of the count, such as the number of target tokens of all
            micro-batches.
        vocab: "strict" wants equal vocabularies; "common" compares the first min(V, V') columns, a number n the first
            n, each side renormalised over them. Other columns get gradient zero.
        return_stats: return also the `Stats` of the rows.
        teacher_grad: let gradients flow to the teacher too; backend "reference" only.
        backend: "auto", "cpu", "triton" or "reference". "auto" takes the kernels made for the tensors' device.
        **params: parameters of the kind.

    Returns:
        The loss: 0-d, or `[...]` for reduction "none"; float32, or float64 for float64 logits. With `return_stats` a
        pair (loss, Stats). A batch without rows that count gives 0, connected to the graph.

    Raises:
        ValueError: a shape, range, device or name that does not fit.
        TypeError: a dtype or type that does not fit.
        RuntimeError: a backend that is not available in this installation.
    """
    arguments.logits_pair(student, teacher)
    spec_kind = resolve(kind, params)
    columns = arguments.vocabulary(vocab, student.shape[-1], teacher.shape[-1])
    t_student, t_teacher = arguments.temperatures(temperature)
    scale = t_student * t_teacher if scale_t2 else 1.0
    arguments.reduction(reduction)
    divisor = arguments.normalizer(normalizer, reduction, student)
    real = torch.float64 if student.dtype == torch.float64 else torch.float32
    weight = arguments.row_weights(mask, labels, ignore_index, student, real)
    if backend == "auto" and (teacher_grad or spec_kind.kernel is None):
        backend = "reference"
    chosen = select.choose(backend, student.device.type, (student.dtype, teacher.dtype))
    if chosen != "reference":
        if teacher_grad:
            raise ValueError(f"teacher_grad=True needs backend='reference', got {backend!r}")
        if spec_kind.kernel is None:
            raise ValueError(f"{spec_kind!r} has no kernel; it needs backend='reference', got {backend!r}")

    rows = student.shape[:-1]
    student_rows = student if student.dim() == 2 else student.reshape(-1, student.shape[-1])
    teacher_rows = teacher if teacher.dim() == 2 else teacher.reshape(-1, teacher.shape[-1])
    if teacher_rows.requires_grad and not teacher_grad:
        teacher_rows = teacher_rows.detach()
    if chosen == "reference":
        loss, entropy = reference.divergence(
            student_rows, teacher_rows, weight, divisor, spec_kind, (t_student, t_teacher), scale, columns, reduction,
            return_stats,
        )  # fmt: skip
    else:
        spec = Spec(*spec_kind.kernel, (1 / t_student, 1 / t_teacher), scale, columns)
        loss, entropy = _by_kernel(student_rows, teacher_rows, weight, divisor, spec, reduction, return_stats, chosen)
    if reduction == "none":
        loss = loss.reshape(rows)
    if not return_stats:
        return loss
    n_valid = count(weight, entropy[0])
    if reduction == "none":
        return loss, Stats(n_valid, entropy[0].reshape(rows), entropy[1].reshape(rows))
    return loss, Stats(n_valid, *(reduce(h, weight, reduction, divisor) for h in entropy))


def _by_kernel(student, teacher, weight, divisor, spec, reduction, with_entropy, backend) -> tuple[Tensor, Tensor]:
    if divisor is not None:
        reduction = "sum"
        if isinstance(divisor, float):  # a constant: part of the scale
            spec, divisor = spec._replace(scale=spec.scale / divisor), None
    if not (student.requires_grad and torch.is_grad_enabled()):  # the value costs less without its gradient
        loss, _, entropy = ops.divergence(
            student, teacher, weight, divisor, *spec, reduction, False, with_entropy, backend
        )
        return loss, entropy
    if reduction == "none":
        return RowDivergence.apply(student, teacher, weight, spec, with_entropy, backend)
    return ReducedDivergence.apply(student, teacher, weight, divisor, (spec, reduction, with_entropy, backend))
