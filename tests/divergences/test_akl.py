"""AKL: both KLs, weighed by how wrong the student is on the head and on the tail of the teacher."""

import pytest
import torch
from golden import (
    DIFFERENCE_ERROR,
    STUDENT,
    central_differences,
    check_golden,
    check_row,
    distributions,
    each_backend_and_dtype,
)

import kd_kernels as kd
from kd_kernels.testing.budget import assert_within_budget
from kd_kernels.testing.inputs import far_pair
from kd_kernels.testing.truth import eager, evaluate, truth

# p = (0.354, 0.262, 0.176, 0.130, 0.079): at mu = 1/2 the second entry crosses, and belongs to the tail.
CROSSING = [1.0, 0.7, 0.3, 0.0, -0.5]

each_backend = pytest.mark.parametrize("backend", ["cpu", "triton", "reference"])


def kls(p, q):
    return (p * (p / q).log()).sum(-1), (q * (q / p).log()).sum(-1)


def check_head(student, teacher, mu, head, backend):
    """The loss with the entries `head` of the teacher's distribution in the head, worked out from probabilities."""
    rows = [torch.tensor(z) for z in (student, teacher)]
    p, q = distributions(*(z.double() for z in rows))
    gap = (p - q).abs()
    weight = gap[head].sum() / gap.sum()
    forward, reverse = kls(p, q)
    by_kind = [truth(*(z[None] for z in rows), kind).gradient[0] for kind in (kd.ForwardKL(), kd.ReverseKL())]
    loss, gradient = (weight * f + (1 - weight) * r for f, r in ((forward, reverse), by_kind))
    check_row(kd.AKL(mu), backend, loss, gradient, student, teacher)


@each_backend_and_dtype
def test_golden(backend, dtype):
    check_golden(
        kd.AKL(), backend, dtype, 0.46941628, [-0.35495324, 0.29930414, -0.07054832, 0.11115432, 0.01504310]
    )  # fmt: skip


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_golden_where_an_entry_crosses(backend):
    """The rule of the paper's own code; the other one, of DSKD and KDFlow, gives 0.24700813 here."""
    gradient = [-0.15617081, 0.30597445, -0.08581512, -0.0263175, -0.03767102]
    check_golden(kd.AKL(), backend, torch.float64, 0.24201077, gradient, teacher=CROSSING)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize(
    ("mu", "head"),
    [(0.0, [0]), (0.3, [0]), (0.5, [0]), (0.6, [0]), (0.63, [0, 1]), (0.8, [0, 1, 2]), (0.93, [0, 1, 2, 3])],
)
def test_head_is_what_comes_before_the_mass_exceeds_mu(mu, head, backend):
    check_head(STUDENT, CROSSING, mu, head, backend)


@each_backend
def test_head_follows_the_order_of_the_teacher(backend):
    """The same distribution with its entries elsewhere."""
    check_head(STUDENT, [-0.5, 0.3, 1.0, 0.0, 0.7], 0.8, [2, 4, 1], backend)


@each_backend
@pytest.mark.parametrize(("mu", "head"), [(0.2, [0]), (0.3, [0]), (0.6, [0, 1]), (0.8, [0, 1, 2])])
def test_ties_go_by_index(mu, head, backend):
    """Four entries of 1/4 each. The student tells them apart, so that another head would have another weight."""
    check_head([0.0, 1.0, 2.5, 4.5], [0.0, 0.0, 0.0, 0.0], mu, head, backend)


@each_backend
@pytest.mark.parametrize(("mu", "head"), [(0.2, [0]), (0.6, [0, 1])])
def test_zeros_of_both_signs_tie(mu, head, backend):
    check_head([0.0, 1.0, 2.5, 4.5], [-0.0, 0.0, -0.0, 0.0], mu, head, backend)


@each_backend
@pytest.mark.parametrize(("mu", "head"), [(0.5, [1]), (0.66, [1, 0]), (0.82, [1, 0, 2]), (0.95, [1, 0, 2, 4])])
def test_ties_below_the_top_go_by_index(mu, head, backend):
    """p = (0.16, 0.43, 0.16, 0.10, 0.16)."""
    check_head([0.0, 1.0, 2.5, 4.5, -1.0], [1.0, 2.0, 1.0, 0.5, 1.0], mu, head, backend)


@pytest.mark.parametrize("backend", ["cpu", "triton"])
@pytest.mark.parametrize("mu", [0.1, 0.5, 0.95])
def test_many_ties(mu, backend):
    """Teacher logits in steps of 1/2: the threshold falls among dozens of equal entries."""
    student, teacher = far_pair(32 if backend == "cpu" else 2, 1500, scale=1.5)
    teacher = (teacher * 2).round() / 2
    kind = kd.AKL(mu)
    expected, plain = truth(student, teacher, kind), eager(student, teacher, kind)
    actual = evaluate(student, teacher, kind, backend=backend)
    assert_within_budget(actual.losses, expected.losses, plain.losses, "losses")
    assert_within_budget(actual.gradient, expected.gradient, plain.gradient, "gradient")


@pytest.mark.parametrize("mu", [0.2, 0.5, 0.9])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_weights_are_constant_in_the_gradient(mu, temperature):
    """The gradient is the derivative of the weighted KLs with the weights held, and not the derivative of the value."""
    student, teacher = (x[0] for x in far_pair(1, 9, torch.float64, scale=1.5))

    def weight(p, q):
        p, order = p.sort(descending=True, stable=True)
        tail = p.cumsum(-1) > mu
        tail[..., 0] = False
        gap = (p - q.gather(-1, order)).abs()
        return (gap * ~tail).sum(-1) / gap.sum(-1)

    held = weight(*distributions(student, teacher, temperature))

    def with_weight(z, weight_of):
        p, q = distributions(z, teacher.expand_as(z), temperature)
        forward, reverse = kls(p, q)
        w = weight_of(p, q)
        return w * forward + (1 - w) * reverse

    leaf = student.clone().requires_grad_()
    with_weight(leaf, lambda p, q: held).backward()
    result = evaluate(student[None], teacher[None], kd.AKL(mu), backend="cpu", temperature=temperature)
    gradient = result.gradient[0]
    slack = 9 * torch.finfo(torch.float64).eps * max(1.0, result.losses.item())
    torch.testing.assert_close(gradient, leaf.grad, rtol=0, atol=slack)
    held_differences = central_differences(lambda z: with_weight(z, lambda p, q: held), student)
    torch.testing.assert_close(gradient, held_differences, rtol=0, atol=DIFFERENCE_ERROR)
    moving_differences = central_differences(lambda z: with_weight(z, weight), student)
    assert (gradient - moving_differences).abs().max() > 1e4 * DIFFERENCE_ERROR


@each_backend
def test_between_the_two_kls(backend):
    student, teacher = far_pair(4, 60)
    bounds = torch.stack([truth(student, teacher, kind).losses for kind in (kd.ForwardKL(), kd.ReverseKL())])
    losses = evaluate(student, teacher, kd.AKL(), backend=backend).losses
    assert (losses >= bounds.amin(0)).all()
    assert (losses <= bounds.amax(0)).all()
