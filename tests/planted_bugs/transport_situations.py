"""What kernels of optimal transport get wrong shows here; the kind of divergence plays no part."""

import math

import torch
from comparisons import guarded_memory

import kd_kernels as kd

INF, NAN = math.inf, math.nan


def equal(actual, expected, what, relative=2e-5):
    """Infinite in the same places, and elsewhere within a part of the largest."""
    actual = actual.detach().double()
    expected = expected.detach().double()
    finite = expected.isfinite()
    assert torch.equal(actual[~finite], expected[~finite]), f"{what}: infinite in other places than the truth"
    size = expected[finite].abs().amax().item() if finite.any() else 0.0
    error = (actual - expected)[finite].abs()
    assert (error <= relative * size).all(), f"{what}: error {error.max():.1e} of {size:.1e}"


def compare_sinkhorn(cost, a=None, b=None, *, backend, plan=True, **options):
    """Results and all gradients against the reference in float64."""
    of_plan = torch.randn(cost.shape).double() if plan else None
    outcomes = []
    for chosen, dtype in ((backend, torch.float32), ("reference", torch.float64)):
        leaves = [x if x is None else x.to(dtype).requires_grad_() for x in (cost.clone(), a, b)]
        init = {"init": tuple(x.to(dtype) for x in options["init"])} if "init" in options else {}
        with guarded_memory():
            result = kd.sinkhorn(*leaves, **(options | init), return_plan=plan, backend=chosen)
            upstream = torch.linspace(1, -0.5, len(result.value)).to(dtype)
            loss = (result.value * upstream).sum() + ((result.plan * of_plan).sum() if plan else 0)
            gradients = torch.autograd.grad(loss, [x for x in leaves if x is not None])
        outcomes.append((*(getattr(result, x) for x in ("value", "f", "g", "iterations")), *gradients,
                         *((result.plan,) if plan else ())))  # fmt: skip
    for k, (actual, expected) in enumerate(zip(*outcomes, strict=True)):
        equal(actual, expected, f"result {k}")


def masses(*shape):
    return torch.rand(shape) + 0.2


def ordinary_problems(kind, backend):
    for value in ("transport", "entropic"):
        compare_sinkhorn(
            torch.rand(2, 13, 21), masses(2, 13), masses(2, 21), iterations=3, value=value, backend=backend
        )


def many_iterations(kind, backend):
    """More than there is room for terms of."""
    compare_sinkhorn(torch.rand(2, 9, 9), masses(2, 9), masses(2, 9), iterations=30, backend=backend)


def lengths_and_masses(kind, backend):
    """NaN where nothing is read, +inf where nothing may be sent."""
    cost, a, b = torch.rand(3, 13, 21), masses(3, 13), masses(3, 21)
    cost[:, 2, 4] = cost[:, 5, ::3] = INF
    cost[1, 9:] = cost[1, :, 17:] = a[1, 9:] = b[1, 17:] = 0.0
    lengths = (torch.tensor([13, 9, 13]), torch.tensor([21, 17, 21]))
    a[2, 3] = b[2, 6] = 0
    cost[2, 3] = cost[2, :, 6] = -100.0
    compare_sinkhorn(cost, a, b, lengths=lengths, iterations=4, backend=backend)


def a_start(kind, backend):
    cost, b = torch.rand(2, 9, 12), masses(2, 12)
    b[:, 5] = 0
    init = torch.zeros(2, 9), torch.randn(2, 12) + 20 * (torch.arange(12) == 5)
    compare_sinkhorn(cost, masses(2, 9), b, init=init, iterations=2, backend=backend)


def early_stop(kind, backend):
    """Masses of 5 and more; the second time right behind new offsets."""
    cost, a, b = torch.rand(2, 9, 12), masses(2, 9), masses(2, 12)
    b *= a.sum(1, keepdim=True) / b.sum(1, keepdim=True)
    compare_sinkhorn(cost, a, b, iterations=30, tol=0.05, eps=0.2, backend=backend)
    cost[:, :, 4] += 9
    compare_sinkhorn(cost, a, b, iterations=30, tol=0.9, eps=0.3, backend=backend)


def new_offsets(kind, backend):
    """Scalings that drift."""
    cost = torch.rand(2, 12, 12)
    compare_sinkhorn(cost, masses(2, 12), masses(2, 12), iterations=40, eps=2e-3, backend=backend, plan=False)


def far_columns(kind, backend):
    cost = torch.rand(2, 9, 11)
    cost[:, :, 4] += 9
    for iterations in (1, 2, 5):
        compare_sinkhorn(cost, masses(2, 9), masses(2, 11), iterations=iterations, eps=0.1, backend=backend)


def forbidden_columns(kind, backend):
    """Rows that are scaled by exactly 1, and a column that nobody may send to."""
    cost = torch.tensor([[[1.0, 3.0, INF], [3.0, 2.0, INF], [1.5, 3.0, INF]]])
    compare_sinkhorn(cost, masses(1, 3), torch.ones(1, 3), iterations=2, eps=1e-2, backend=backend)


SINKHORN_SITUATIONS = [
    ordinary_problems, many_iterations, lengths_and_masses, a_start, early_stop, new_offsets, far_columns,
    forbidden_columns,
]  # fmt: skip


def compare_l1(student, teacher, *, backend, relative=2e-5, **options):
    upstream = torch.randn(len(student), student.shape[1], teacher.shape[1])
    outcomes = []
    for chosen, dtype in ((backend, torch.float32), ("reference", torch.float64)):
        leaf = student.to(dtype).clone().requires_grad_()
        with guarded_memory():
            cost = kd.l1_cost(leaf, teacher.to(dtype), backend=chosen, **options)
            (gradient,) = torch.autograd.grad((cost * upstream).sum(), leaf)
        outcomes.append((cost, gradient))
    for what, actual, expected in zip(("cost", "gradient"), *outcomes, strict=True):
        equal(actual, expected, what, relative)


def masked_rows(kind, backend):
    """More rows than a block has, on both sides; NaN where nothing is read."""
    student, teacher = torch.randn(2, 67, 40), torch.randn(2, 70, 37)
    student_mask, teacher_mask = torch.rand(2, 67) < 0.97, torch.rand(2, 70) < 0.97
    student_mask[0, 3] = student_mask[1, 66] = teacher_mask[0, 5] = teacher_mask[1, 0] = False
    student[~student_mask] = teacher[~teacher_mask] = student[:, :, 30:] = NAN
    compare_l1(student, teacher, student_mask=student_mask, teacher_mask=teacher_mask, vocab=30,
               temperature=(2.0, 0.7), backend=backend)  # fmt: skip


def many_columns(kind, backend):
    """More blocks than parts of a sum."""
    compare_l1(torch.randn(1, 2, 33000) * 3, torch.randn(1, 3, 33000) * 3, backend=backend)


def vectors(kind, backend):
    student = torch.randint(-2, 3, (2, 5, 30)) / 2
    teacher = torch.randint(-2, 3, (2, 6, 30)) / 2
    compare_l1(student, teacher, softmax=False, backend=backend)


L1_COST_SITUATIONS = [masked_rows, many_columns, vectors]


def compare_sorted(student, teacher, *, backend, **options):
    outcomes = []
    for chosen, dtype in ((backend, torch.float32), ("reference", torch.float64)):
        leaf = student.to(dtype).clone().requires_grad_()
        with guarded_memory():
            loss = kd.sorted_l1(leaf, teacher.to(dtype), reduction="none", backend=chosen, **options)
            (gradient,) = torch.autograd.grad(loss.sum(), leaf)
        outcomes.append((loss, gradient))
    for what, actual, expected in zip(("loss", "gradient"), *outcomes, strict=True):
        equal(actual, expected, what)


def sorted_rows(kind, backend):
    for sizes in ((40, 40), (33, 60), (60, 33), (2100, 2050)):
        student, teacher = (torch.randn(3, n) * 3 for n in sizes)
        compare_sorted(student, teacher, temperature=(2.0, 0.7), backend=backend)
        compare_sorted(student, teacher, top_k=9, backend=backend)
        compare_sorted(student, teacher, top_k=50, backend=backend)


def equal_logits(kind, backend):
    """Zeros of both signs are equal, and stay in their order."""
    student = torch.tensor([[0.0, -0.0, 1.0, 0.0, -0.0, -1.0, -0.0, 0.0]])
    compare_sorted(student, torch.linspace(-0.5, 0.5, 8)[None], backend=backend)


SORTED_L1_SITUATIONS = [sorted_rows, equal_logits]
