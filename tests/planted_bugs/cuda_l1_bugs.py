"""Bugs of the CUDA kernels of L1 costs: every barrier, bound and mask, and slips in the maths."""

import torch
from bugs import CudaBug

from kd_kernels.backends import reference

NAN = float("nan")


def near(actual, expected, what, relative=3e-5):
    size = expected.abs().amax().item()
    error = (actual.double() - expected).abs()
    assert (error <= relative * size).all(), f"{what}: error {error.max():.1e} of {size:.1e}"


def compare(cuda, student, teacher, student_mask=None, teacher_mask=None, rates=(1.0, 1.0), columns=None, softmax=True):
    """Costs and gradient, under several orders of threads, against the reference in float64."""
    columns = columns or student.shape[2]
    spec = (student_mask, teacher_mask, list(rates), columns, softmax)
    leaf = student.double().requires_grad_()
    expected = reference.l1_cost(leaf, teacher.double(), *spec, torch.float64)[0]
    upstream = torch.randn(expected.shape)
    (gradient,) = torch.autograd.grad((expected * upstream).sum(), leaf)
    for seed in range(4):
        cost, statistics = cuda.l1_cost(student, teacher, *spec, seed=seed)
        near(cost, expected.detach(), "cost")
        near(cuda.l1_cost_backward(upstream, statistics, student, teacher, *spec, seed=seed), gradient, "gradient")
