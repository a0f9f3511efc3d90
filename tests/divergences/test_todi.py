"""ToDi: entry by entry a mix of both KLs, with weights that are constant in the gradient."""

import pytest
import torch
from golden import (
    DIFFERENCE_ERROR,
    central_differences,
    check_golden,
    each_backend_and_dtype,
)

import kd_kernels as kd
from kd_kernels.testing.budget import assert_within_budget
from kd_kernels.testing.inputs import far_pair, near_pair
from kd_kernels.testing.truth import eager, evaluate, truth

GOLDEN = {
    "beta=1": (1.0, 1.0, 0.93760212, [-0.55461954, 0.45712405, -0.11090245, 0.18355629, 0.02484164]),
    "beta=1, T=2": (1.0, 2.0, 0.26093963, [-0.13353161, 0.08516665, -0.04804372, 0.07048040, 0.02592829]),
    "beta=2": (2.0, 1.0, 1.22780176, [-0.67327871, 0.57350491, -0.14173224, 0.21271782, 0.02878823]),
}


def weighted(w, log_p, log_q):
    return (w * log_p.exp() * (log_p - log_q) + (1 - w) * log_q.exp() * (log_q - log_p)).sum(-1)


@each_backend_and_dtype
@pytest.mark.parametrize("case", GOLDEN)
def test_golden(case, backend, dtype):
    beta, temperature, loss, gradient = GOLDEN[case]
    check_golden(kd.ToDi(beta), backend, dtype, loss, gradient, temperature=temperature)


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0, 3.0])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_weights_are_constant_in_the_gradient(beta, temperature):
    """The gradient is the derivative of the formula with the weights held, and not the derivative of the value."""
    student, teacher = (x[0] for x in far_pair(1, 9, torch.float64, scale=1.5))
    log_p = (teacher / temperature).log_softmax(-1)
    held = torch.sigmoid(beta * (log_p - (student / temperature).log_softmax(-1)))

    def with_held_weights(z):
        return weighted(held, log_p, (z / temperature).log_softmax(-1))

    def with_moving_weights(z):
        log_q = (z / temperature).log_softmax(-1)
        return weighted(torch.sigmoid(beta * (log_p - log_q)), log_p, log_q)

    leaf = student.clone().requires_grad_()
    with_held_weights(leaf).backward()
    result = evaluate(student[None], teacher[None], kd.ToDi(beta), backend="cpu", temperature=temperature)
    gradient = result.gradient[0]
    eps = torch.finfo(torch.float64).eps
    torch.testing.assert_close(gradient, leaf.grad, rtol=0, atol=9 * eps * (1 + beta) * result.losses.item())
    torch.testing.assert_close(gradient, central_differences(with_held_weights, student), rtol=0, atol=DIFFERENCE_ERROR)
    if beta > 0:
        assert (gradient - central_differences(with_moving_weights, student)).abs().max() > 1e6 * DIFFERENCE_ERROR


@pytest.mark.parametrize("pair", [far_pair, near_pair])
def test_value_is_that_of_jeffreys_at_beta_1(pair):
    student, teacher = pair(32, 300)
    actual = evaluate(student, teacher, kd.ToDi(), backend="cpu")
    jeffreys = truth(student, teacher, kd.Jeffreys())
    assert_within_budget(actual.losses, jeffreys.losses, eager(student, teacher, kd.ToDi()).losses, "losses")


@pytest.mark.parametrize("pair", [far_pair, near_pair])
def test_half_of_jeffreys_at_beta_0(pair):
    student, teacher = pair(32, 300)
    actual = evaluate(student, teacher, kd.ToDi(0.0), backend="cpu")
    jeffreys, plain = truth(student, teacher, kd.Jeffreys()), eager(student, teacher, kd.ToDi(0.0))
    assert_within_budget(actual.losses, jeffreys.losses / 2, plain.losses, "losses")
    assert_within_budget(actual.gradient, jeffreys.gradient / 2, plain.gradient, "gradient")


@pytest.mark.parametrize("backend", ["cpu", "triton"])
def test_large_beta_is_a_switch(backend):
    """KL(p, q)'s term where p > q, KL(q, p)'s elsewhere."""
    student, teacher = far_pair(8, 50)
    log_p, leaf = teacher.double().log_softmax(-1), student.double().requires_grad_()
    log_q = leaf.log_softmax(-1)
    loss = weighted((log_p > log_q).double(), log_p, log_q)
    loss.sum().backward()
    kind = kd.ToDi(1e6)
    actual, plain = evaluate(student, teacher, kind, backend=backend), eager(student, teacher, kind)
    assert_within_budget(actual.losses, loss.detach(), plain.losses, "losses")
    assert_within_budget(actual.gradient, leaf.grad, plain.gradient, "gradient")
