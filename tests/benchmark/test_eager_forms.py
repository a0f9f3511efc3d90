"""What the library is measured against computes the same thing."""

import pytest
import torch

import kd_kernels as kd
from kd_kernels.benchmark import eager
from kd_kernels.testing.budget import assert_within_budget
from kd_kernels.testing.inputs import far_pair, near_pair
from kd_kernels.testing.truth import eager as reference
from kd_kernels.testing.truth import truth

# A weight of 1/2 would hide two sides swapped.
KINDS = [
    kd.ForwardKL(), kd.ReverseKL(), kd.Jeffreys(), kd.JSD(0.2), kd.JSTeacher(0.2), kd.JSStudent(0.2), kd.TVD(),
    kd.SkewForwardKL(0.2), kd.SkewReverseKL(0.2), kd.ToDi(2.0), kd.AKL(0.4),
]  # fmt: skip


def test_there_is_a_form_of_every_kind():
    assert {kind.name for kind in KINDS} == set(kd.KINDS) == set(eager._FORMS)


@pytest.mark.parametrize("pair", [far_pair, near_pair])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_value_and_gradient(kind, dtype, pair):
    student, teacher = pair(6, 400, dtype)
    exact, rounded = truth(student, teacher, kind), reference(student, teacher, kind)
    student.requires_grad_()
    loss = eager.loss(kind, student, teacher)
    loss.backward()
    losses = eager.terms(kind, student, teacher).sum(-1)
    torch.testing.assert_close(loss, losses.mean())
    if dtype == torch.float64:  # as exact as the truth, so there is nothing to derive a budget from
        torch.testing.assert_close(losses, exact.losses)
        torch.testing.assert_close(6 * student.grad, exact.gradient)
    else:
        assert_within_budget(losses, exact.losses, rounded.losses, "losses")
        assert_within_budget(6 * student.grad, exact.gradient, rounded.gradient, "gradient")
