"""KL(p, q), KL(q, p) and their sum."""

import math

import pytest
import torch
from golden import check_differences, check_golden, distributions, each_backend_and_dtype

import kd_kernels as kd
from kd_kernels.testing.budget import assert_within_budget
from kd_kernels.testing.inputs import far_pair, near_pair
from kd_kernels.testing.truth import eager, evaluate, truth

GOLDEN = {
    "forward": (kd.ForwardKL(), 1.0, 0.46399701, [-0.39753365, 0.34600941, -0.05838635, 0.09680893, 0.01310166]),
    "forward, T=2": (kd.ForwardKL(), 2.0, 0.13059401, [-0.09399585, 0.06359698, -0.02887425, 0.04333212, 0.01594100]),
    "reverse": (kd.ReverseKL(), 1.0, 0.47360511, [-0.32204067, 0.26320325, -0.07994893, 0.12224261, 0.01654374]),
    "jeffreys": (kd.Jeffreys(), 1.0, 0.93760212, [-0.71957432, 0.60921266, -0.13833528, 0.21905154, 0.02964540]),
}

each_kl = pytest.mark.parametrize("kind", [kd.ForwardKL(), kd.ReverseKL(), kd.Jeffreys()], ids=repr)
each_regime = pytest.mark.parametrize("pair", [far_pair, near_pair])


@each_backend_and_dtype
@pytest.mark.parametrize("case", GOLDEN)
def test_golden(case, backend, dtype):
    kind, temperature, loss, gradient = GOLDEN[case]
    check_golden(kind, backend, dtype, loss, gradient, temperature=temperature)


@each_kl
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_finite_differences(kind, temperature):
    check_differences(kind, temperature=temperature)


@each_regime
def test_forward_gradient_is_the_difference_of_the_distributions(pair):
    student, teacher = pair(32, 300)
    p, q = distributions(student.double(), teacher.double(), 2.0)
    actual = evaluate(student, teacher, kd.ForwardKL(), backend="cpu", temperature=2.0).gradient
    plain = eager(student, teacher, kd.ForwardKL(), temperature=2.0).gradient
    assert_within_budget(actual, (q - p) / 2, plain, "gradient")


@each_regime
def test_jeffreys_is_the_sum_of_both(pair):
    student, teacher = pair(32, 300)
    actual = evaluate(student, teacher, kd.Jeffreys(), backend="cpu")
    both = [truth(student, teacher, kind) for kind in (kd.ForwardKL(), kd.ReverseKL())]
    plain = eager(student, teacher, kd.Jeffreys())
    assert_within_budget(actual.losses, both[0].losses + both[1].losses, plain.losses, "losses")
    assert_within_budget(actual.gradient, both[0].gradient + both[1].gradient, plain.gradient, "gradient")


@each_regime
@pytest.mark.parametrize(
    ("kind", "mirrored"),
    [(kd.ForwardKL(), kd.ReverseKL()), (kd.ReverseKL(), kd.ForwardKL()), (kd.Jeffreys(), kd.Jeffreys())],
    ids=repr,
)
def test_exchanging_the_sides_exchanges_the_directions(pair, kind, mirrored):
    student, teacher = pair(32, 300)
    actual = evaluate(student, teacher, kind, backend="cpu").losses
    assert_within_budget(
        actual, truth(teacher, student, mirrored).losses, eager(student, teacher, kind).losses, "losses"
    )


def test_by_hand():
    """p = (1/2, 1/2), q = (3/4, 1/4)."""
    student = torch.tensor([[math.log(3), 0.0]], dtype=torch.float64)
    teacher = torch.zeros(1, 2, dtype=torch.float64)
    expected = {
        "forward_kl": math.log(4 / 3) / 2,
        "reverse_kl": (3 * math.log(3) - 4 * math.log(2)) / 4,
        "jeffreys": math.log(3) / 4,
    }
    for kind, loss in expected.items():
        assert kd.divergence(student, teacher, kind, backend="cpu").item() == pytest.approx(loss, rel=1e-15)


@each_kl
def test_pinsker(kind):
    """KL >= 2 TVD^2, both ways round."""
    student, teacher = far_pair(200, 60, scale=0.5)
    tvd = truth(student, teacher, kd.TVD()).losses
    assert (evaluate(student, teacher, kind, backend="cpu").losses >= 2 * tvd**2).all()
