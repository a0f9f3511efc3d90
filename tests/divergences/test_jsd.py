"""Generalised Jensen-Shannon divergence."""

import math

import pytest
import torch
from golden import check_differences, check_golden, each_backend_and_dtype

import kd_kernels as kd
from kd_kernels.testing.budget import assert_within_budget
from kd_kernels.testing.inputs import far_pair, near_pair
from kd_kernels.testing.truth import eager, evaluate, truth

GOLDEN = {
    0.1: (0.04112600, [-0.03372080, 0.02951291, -0.00541901, 0.00847934, 0.00114755]),
    0.5: (0.11183220, [-0.08149552, 0.07154759, -0.01664910, 0.02342659, 0.00317044]),
    0.9: (0.04175152, [-0.02859654, 0.02406864, -0.00685013, 0.01002174, 0.00135629]),
}

each_beta = pytest.mark.parametrize("beta", [0.1, 0.5, 0.9])


@each_backend_and_dtype
@each_beta
def test_golden(beta, backend, dtype):
    check_golden(kd.JSD(beta), backend, dtype, *GOLDEN[beta])


@each_beta
def test_finite_differences(beta):
    check_differences(kd.JSD(beta), temperature=1.5)


@pytest.mark.parametrize(("beta", "kl"), [(0, "forward_kl"), (1, "reverse_kl")])
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_ends_are_the_kls(beta, kl, backend):
    """By convention: the formula itself tends to 0 there."""
    student, teacher = far_pair(4, 100)
    end = evaluate(student, teacher, kd.JSD(beta), backend=backend)
    expected = evaluate(student, teacher, kl, backend=backend)
    assert torch.equal(end.losses, expected.losses)
    assert torch.equal(end.gradient, expected.gradient)


@pytest.mark.parametrize(("towards", "kl"), [(0, "forward_kl"), (1, "reverse_kl")])
def test_limit_at_the_ends(towards, kl):
    """JSD / beta -> KL(p, q) and JSD / (1 - beta) -> KL(q, p), with an error in proportion to the distance."""
    student, teacher = far_pair(20, 50, torch.float64, scale=1.0)
    limit = truth(student, teacher, kl).losses
    errors = [
        (limit - evaluate(student, teacher, kd.JSD(abs(towards - step)), backend="cpu").losses / step).abs()
        for step in (1e-3, 1e-4)
    ]
    assert ((errors[0] / errors[1] - 10).abs() < 1).all()


@each_beta
@pytest.mark.parametrize("pair", [far_pair, near_pair])
def test_exchanging_the_sides_exchanges_the_weights(beta, pair):
    student, teacher = pair(32, 300)
    actual = evaluate(student, teacher, kd.JSD(beta), backend="cpu").losses
    expected = truth(teacher, student, kd.JSD(1 - beta)).losses
    assert_within_budget(actual, expected, eager(student, teacher, kd.JSD(beta)).losses, "losses")


@each_beta
@pytest.mark.parametrize("pair", [far_pair, near_pair])
def test_sum_of_the_one_sided_halves(beta, pair):
    """beta weighs the teacher in JSD, the student in the halves. The gradients add up too, through the mixture."""
    student, teacher = pair(32, 300)
    actual = evaluate(student, teacher, kd.JSD(beta), backend="cpu")
    ours, theirs = (truth(student, teacher, half(1 - beta)) for half in (kd.JSTeacher, kd.JSStudent))
    plain = eager(student, teacher, kd.JSD(beta))
    assert_within_budget(actual.losses, beta * ours.losses + (1 - beta) * theirs.losses, plain.losses, "losses")
    expected = beta * ours.gradient + (1 - beta) * theirs.gradient
    assert_within_budget(actual.gradient, expected, plain.gradient, "gradient")


@each_beta
def test_bounded_by_the_entropy_of_the_weights(beta):
    """Reached where the distributions have nothing in common."""
    bound = -beta * math.log(beta) - (1 - beta) * math.log(1 - beta)
    student, teacher = far_pair(100, 40, torch.float64, scale=5.0)
    assert (evaluate(student, teacher, kd.JSD(beta), backend="cpu").losses < bound).all()
    student[:, :20], teacher[:, 20:] = -math.inf, -math.inf
    apart = evaluate(student, teacher, kd.JSD(beta), backend="cpu")
    torch.testing.assert_close(apart.losses, torch.full_like(apart.losses, bound), rtol=1e-14, atol=0)
    assert (apart.gradient.abs() <= 40 * torch.finfo(torch.float64).eps).all()
