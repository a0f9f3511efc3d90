"""Ops of optimal transport."""

import torch

from kd_kernels import adjoint
from kd_kernels.backends import select
from kd_kernels.reduction import sum_dtype

# history (B, iterations, n + m): what the scalings of each iteration were multiplied by, and offsets (B, 3, n + m)
# float64: the logarithms they are relative to. Only the backward op of the same backend reads them.
torch.library.define(
    "kd_kernels::sinkhorn",
    "(Tensor cost, Tensor? a, Tensor? b, Tensor eps, Tensor? lengths, Tensor? start, int iterations, float tolerance, "
    "str value, bool with_plan, bool with_history, str backend) -> (Tensor value, Tensor f, Tensor g, Tensor plan, "
    "Tensor iterations, Tensor error, Tensor history, Tensor offsets)",
    tags=torch.Tag.pt2_compliant_tag,
)
torch.library.define(
    "kd_kernels::sinkhorn_backward",
    "(Tensor upstream, Tensor? plan_upstream, Tensor cost, Tensor? a, Tensor? b, Tensor eps, Tensor? lengths, "
    "Tensor iterations, Tensor history, Tensor offsets, str value, bool[] wanted, str backend) -> "
    "(Tensor cost_gradient, Tensor a_gradient, Tensor b_gradient)",
    tags=torch.Tag.pt2_compliant_tag,
)
torch.library.define(
    "kd_kernels::sinkhorn_adjoint",
    "(Tensor plan, Tensor rows, Tensor columns) -> (Tensor, Tensor)",
    tags=torch.Tag.pt2_compliant_tag,
)
_PAIR = (
    "Tensor student, Tensor teacher, Tensor? student_mask, Tensor? teacher_mask, float[] inverse_temperatures, "
    "SymInt columns, bool softmax"
)
# statistics (B, n + m, 2): what turns logits into probabilities, for the backward op of the same backend.
torch.library.define(
    "kd_kernels::l1_cost", f"({_PAIR}, str backend) -> (Tensor cost, Tensor statistics)",
    tags=torch.Tag.pt2_compliant_tag,
)  # fmt: skip
torch.library.define(
    "kd_kernels::l1_cost_backward", f"(Tensor upstream, Tensor statistics, {_PAIR}, str backend) -> Tensor gradient",
    tags=torch.Tag.pt2_compliant_tag,
)  # fmt: skip
# factor (N,): what each row's gradient is multiplied by; a row of factor 0 is not read.
torch.library.define(
    "kd_kernels::sorted_l1",
    "(Tensor student, Tensor teacher, Tensor? factor, float[] inverse_temperatures, SymInt limit, bool with_gradient, "
    "str backend) -> (Tensor loss, Tensor gradient)",
    tags=torch.Tag.pt2_compliant_tag,
)


@torch.library.impl("kd_kernels::sinkhorn", "CompositeExplicitAutograd")
def _sinkhorn(*args):
    return select.implementation(args[-1]).sinkhorn(*args[:-1])


@torch.library.impl("kd_kernels::sinkhorn_backward", "CompositeExplicitAutograd")
def _sinkhorn_backward(*args):
    return select.implementation(args[-1]).sinkhorn_backward(*args[:-1])


@torch.library.impl("kd_kernels::sinkhorn_adjoint", "CompositeExplicitAutograd")
def _sinkhorn_adjoint(plan, rows, columns):
    return adjoint.sinkhorn_adjoint(plan, rows, columns)


@torch.library.impl("kd_kernels::l1_cost", "CompositeExplicitAutograd")
def _l1_cost(*args):
    return select.implementation(args[-1]).l1_cost(*args[:-1])


@torch.library.impl("kd_kernels::l1_cost_backward", "CompositeExplicitAutograd")
def _l1_cost_backward(*args):
    return select.implementation(args[-1]).l1_cost_backward(*args[:-1])


@torch.library.impl("kd_kernels::sorted_l1", "CompositeExplicitAutograd")
def _sorted_l1(*args):
    return select.implementation(args[-1]).sorted_l1(*args[:-1])


@torch.library.register_fake("kd_kernels::sinkhorn")
def _sinkhorn_fake(cost, a, b, eps, lengths, start, iterations, tolerance, value, with_plan, with_history, backend):
    batch, n, m = cost.shape
    real = sum_dtype(cost.dtype)
    with_history = with_history and backend != "reference"
    return (
        cost.new_empty(batch, dtype=real),
        cost.new_empty((batch, n), dtype=real),
        cost.new_empty((batch, m), dtype=real),
        cost.new_empty((batch, n, m) if with_plan else (0,), dtype=real),
        cost.new_empty(batch, dtype=torch.int64),
        cost.new_empty(batch, dtype=real),
        cost.new_empty((batch, iterations, n + m) if with_history else (0,), dtype=real),
        cost.new_empty((batch, 3, n + m) if with_history else (0,), dtype=torch.float64),
    )


@torch.library.register_fake("kd_kernels::sinkhorn_backward")
def _sinkhorn_backward_fake(upstream, plan_upstream, cost, a, b, eps, lengths, iterations, history, offsets, value,
                            wanted, backend):  # fmt: skip
    batch, n, m = cost.shape
    real = sum_dtype(cost.dtype)
    return (
        cost.new_empty((batch, n, m) if wanted[0] else (0,)),
        cost.new_empty((batch, n) if wanted[1] else (0,), dtype=real),
        cost.new_empty((batch, m) if wanted[2] else (0,), dtype=real),
    )


@torch.library.register_fake("kd_kernels::sinkhorn_adjoint")
def _sinkhorn_adjoint_fake(plan, rows, columns):
    return rows.new_empty(rows.shape, dtype=torch.float64), columns.new_empty(columns.shape, dtype=torch.float64)


@torch.library.register_fake("kd_kernels::l1_cost")
def _l1_cost_fake(student, teacher, student_mask, teacher_mask, inverse_temperatures, columns, softmax, backend):
    batch, n, _ = student.shape
    m = teacher.shape[1]
    real = sum_dtype(student.dtype)
    return student.new_empty((batch, n, m), dtype=real), student.new_empty((batch, n + m, 2), dtype=real)


@torch.library.register_fake("kd_kernels::l1_cost_backward")
def _l1_cost_backward_fake(upstream, statistics, student, *args):
    return student.new_empty(student.shape)


@torch.library.register_fake("kd_kernels::sorted_l1")
def _sorted_l1_fake(student, teacher, factor, inverse_temperatures, limit, with_gradient, backend):
    loss = student.new_empty(student.shape[0], dtype=sum_dtype(student.dtype))
    return loss, student.new_empty(student.shape if with_gradient else (0,))


sinkhorn = torch.ops.kd_kernels.sinkhorn.default
sinkhorn_backward = torch.ops.kd_kernels.sinkhorn_backward.default
sinkhorn_adjoint = torch.ops.kd_kernels.sinkhorn_adjoint.default
l1_cost = torch.ops.kd_kernels.l1_cost.default
l1_cost_backward = torch.ops.kd_kernels.l1_cost_backward.default
sorted_l1 = torch.ops.kd_kernels.sorted_l1.default
