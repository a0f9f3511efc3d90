"""Total variation distance."""

import math

import pytest
import torch
from golden import check_differences, check_golden, check_row, distributions, each_backend_and_dtype

import kd_kernels as kd
from kd_kernels.testing.budget import assert_within_budget
from kd_kernels.testing.inputs import far_pair, near_pair
from kd_kernels.testing.truth import eager, evaluate, truth


def tvd(student, teacher):
    return evaluate(student, teacher, kd.TVD(), backend="cpu").losses


@each_backend_and_dtype
def test_golden(backend, dtype):
    check_golden(
        kd.TVD(), backend, dtype, 0.45592000, [-0.14943519, 0.16309330, -0.05497414, 0.03639104, 0.00492499]
    )  # fmt: skip


def test_finite_differences():
    check_differences(kd.TVD(), temperature=1.5)


@pytest.mark.parametrize("pair", [far_pair, near_pair])
def test_symmetric(pair):
    student, teacher = pair(32, 300)
    expected = truth(teacher, student, kd.TVD()).losses
    assert_within_budget(tvd(student, teacher), expected, eager(student, teacher, kd.TVD()).losses, "losses")


@pytest.mark.parametrize("scale", [0.1, 3.0, 50.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_between_0_and_1(scale, dtype):
    """At most 1 beyond rounding, at every distance."""
    losses = tvd(*far_pair(100, 200, dtype, scale=scale))
    assert (losses > 0).all()
    assert (losses <= 1 + torch.finfo(losses.dtype).eps).all()


def test_1_without_common_entries():
    student, teacher = far_pair(20, 30, torch.float64)
    student[:, ::2], teacher[:, 1::2] = -math.inf, -math.inf
    apart = evaluate(student, teacher, kd.TVD(), backend="cpu")
    torch.testing.assert_close(apart.losses, torch.ones_like(apart.losses), rtol=1e-15 * 30, atol=0)
    assert (apart.gradient.abs() <= 30 * torch.finfo(torch.float64).eps).all()


def test_triangle_inequality():
    a, b = far_pair(100, 50, torch.float64, scale=1.0)
    c = far_pair(100, 50, torch.float64, scale=1.0, seed=1)[0]
    assert (tvd(a, b) <= tvd(a, c) + tvd(c, b)).all()


@pytest.mark.parametrize("backend", ["cpu", "triton", "reference"])
def test_subgradient_is_0_at_equal_probabilities(backend):
    """Two entries exchanged, two alike: the sign is -1, 1, 0, 0."""
    student, teacher = [0.0, 1.0, 0.5, 0.5], [1.0, 0.0, 0.5, 0.5]
    p, q = distributions(*(torch.tensor(z, dtype=torch.float64) for z in (student, teacher)))
    g = torch.tensor([-0.5, 0.5, 0.0, 0.0], dtype=torch.float64)
    check_row(kd.TVD(), backend, p[0] - q[0], q * (g - (q * g).sum()), student, teacher)
