"""AKL: both KLs, weighed by where the student is wrong."""

import pytest
import torch
from by_hand import BACKENDS, softmax
from by_hand import akl as by_hand
from row_problems import COUNTINGS, SIDES, check, golden, rows

from kd_kernels.methods import akl

each_backend = pytest.mark.parametrize("backend", BACKENDS)


def formula(mu=0.5, temperature=1.0):
    return lambda student, teacher, _: by_hand(softmax(teacher / temperature), softmax(student / temperature), mu)


def called(**options):
    return lambda student, teacher, labels, **o: akl(student, teacher, **o, **options)


@pytest.mark.parametrize("counting", COUNTINGS)
def test_defaults(counting):
    check(called(), formula(), "logits", counting, "cpu")


@each_backend
@pytest.mark.parametrize("options", [{}, {"mu": 0.8, "temperature": 2.0}, {"mu": 0.0}], ids=str)
def test_heads(options, backend):
    for sides in SIDES:
        check(called(**options), formula(**options), sides, "mask", backend)


@each_backend
def test_golden(backend):
    golden(
        lambda s, t: akl(s, t, backend=backend),
        0.46941628,
        [-0.35495324, 0.29930414, -0.07054832, 0.11115432, 0.01504310],
    )


@each_backend
def test_the_crossing_entry_belongs_to_the_tail(backend):
    """Where the rule of the paper's code and that of others differ."""
    student = torch.tensor([[0.5, 1.5, -0.5, 0.0, -2.0]], dtype=torch.float64, requires_grad=True)
    teacher = torch.tensor([[1.0, 0.7, 0.3, 0.0, -0.5]], dtype=torch.float64)
    loss = akl(student, teacher, backend=backend)
    assert loss.item() == pytest.approx(0.24201077, abs=6e-9)
    expected = torch.tensor([-0.15617081, 0.30597445, -0.08581512, -0.0263175, -0.03767102]).double()
    torch.testing.assert_close(torch.autograd.grad(loss, student)[0][0], expected, rtol=0, atol=6e-9)


def test_weights_are_between_the_two_kls():
    problem = rows()
    p, q = (softmax(x) for x in reversed(problem.logits))
    forward, reverse = (p * (p / q).log()).sum(-1), (q * (q / p).log()).sum(-1)
    loss = akl(problem.student, problem.teacher, reduction="none")
    assert ((loss >= torch.minimum(forward, reverse) - 1e-12) & (loss <= torch.maximum(forward, reverse) + 1e-12)).all()


def test_bad_arguments():
    problem = rows()
    with pytest.raises(ValueError, match="AKL: mu must be"):
        akl(problem.student, problem.teacher, mu=1.0)
    with pytest.raises(TypeError, match="got boundary"):
        akl(problem.student, problem.teacher, boundary="head")
