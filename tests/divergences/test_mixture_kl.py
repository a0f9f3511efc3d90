"""One side against a mixture of both: the halves of f-DISTILL's JS and DistiLLM's skew KLs."""

import math

import pytest
import torch
from golden import check_differences, check_golden, distributions, each_backend_and_dtype

import kd_kernels as kd
from kd_kernels.testing.inputs import far_pair
from kd_kernels.testing.truth import evaluate

GOLDEN = [
    (kd.JSStudent(0.5), 0.11089495, [-0.08957385, 0.07979259, -0.01446215, 0.02135352, 0.00288989]),
    (kd.JSTeacher(0.5), 0.11276945, [-0.07341719, 0.06330259, -0.01883606, 0.02549966, 0.00345100]),
    (kd.SkewForwardKL(0.1), 0.36533606, [-0.28742541, 0.25275632, -0.05013925, 0.07469894, 0.01010940]),
    (kd.SkewReverseKL(0.1), 0.36909207, [-0.25518306, 0.21970791, -0.05891289, 0.08313671, 0.01125133]),
]

each_weight = pytest.mark.parametrize("weight", [0.1, 0.25, 0.5, 0.85])


def same_bits(one, other, backend="cpu"):
    student, teacher = far_pair(4, 100)
    a, b = (evaluate(student, teacher, kind, backend=backend) for kind in (one, other))
    return torch.equal(a.losses, b.losses) and torch.equal(a.gradient, b.gradient)


@each_backend_and_dtype
@pytest.mark.parametrize(("kind", "loss", "gradient"), GOLDEN, ids=lambda x: repr(x) if not isinstance(x, list) else "")
def test_golden(kind, loss, gradient, backend, dtype):
    check_golden(kind, backend, dtype, loss, gradient)


@pytest.mark.parametrize(
    "kind", [kd.JSTeacher(0.3), kd.JSStudent(0.3), kd.SkewForwardKL(0.2), kd.SkewReverseKL(0.2)], ids=repr
)
def test_finite_differences(kind):
    """The gradient flows through the mixture, which holds a part of the student."""
    check_differences(kind, temperature=1.5)


@each_weight
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_skew_kls_are_the_halves_by_another_name(weight, backend):
    """alpha weighs the side the KL starts from, beta the student."""
    assert same_bits(kd.SkewForwardKL(weight), kd.JSTeacher(1 - weight), backend)
    assert same_bits(kd.SkewReverseKL(weight), kd.JSStudent(weight), backend)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_without_a_mixture_they_are_the_kls(backend):
    assert same_bits(kd.SkewForwardKL(0), kd.ForwardKL(), backend)
    assert same_bits(kd.JSTeacher(1), kd.ForwardKL(), backend)
    assert same_bits(kd.SkewReverseKL(0), kd.ReverseKL(), backend)
    assert same_bits(kd.JSStudent(0), kd.ReverseKL(), backend)


@each_weight
def test_by_the_mixture_of_probabilities(weight):
    """The textbook form, m = (1 - beta) p + beta q, where nothing underflows."""
    student, teacher = far_pair(32, 40, torch.float64, scale=1.0)
    p, q = distributions(student, teacher)
    m = (1 - weight) * p + weight * q
    for kind, a in ((kd.JSTeacher(weight), p), (kd.JSStudent(weight), q)):
        expected = (a * (a / m).log()).sum(-1)
        actual = evaluate(student, teacher, kind, backend="cpu").losses
        # The terms of the textbook form cancel: its error is that of numbers of the size of the terms.
        slack = 40 * torch.finfo(torch.float64).eps * (a * (a / m).log().abs()).sum(-1).max()
        assert ((actual - expected).abs() <= slack).all()


@each_weight
def test_bounded_where_the_distributions_are_apart(weight):
    """KL(p, m) <= -log(1 - beta), KL(q, m) <= -log beta, reached without common entries, where the gradient is 0."""
    student, teacher = far_pair(50, 40, torch.float64)
    student[:, :20], teacher[:, 20:] = -math.inf, -math.inf
    for kind, bound in ((kd.JSTeacher(weight), -math.log1p(-weight)), (kd.JSStudent(weight), -math.log(weight))):
        apart = evaluate(student, teacher, kind, backend="cpu")
        torch.testing.assert_close(apart.losses, torch.full_like(apart.losses, bound), rtol=1e-14, atol=0)
        assert (apart.gradient.abs() <= 40 * torch.finfo(torch.float64).eps).all()
