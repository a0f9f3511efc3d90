"""ToDi with its share of cross-entropy."""

import pytest
import torch
from by_hand import BACKENDS, cross_entropy, kl, softmax
from by_hand import todi as by_hand
from hypothesis import given, settings
from hypothesis import strategies as st
from row_problems import COUNTINGS, SIDES, check, golden, rows

import kd_kernels as kd
from kd_kernels.methods import todi

each_backend = pytest.mark.parametrize("backend", BACKENDS)


def formula(kd_rate=0.5, temperature=2.0, beta=1.0):
    def losses(student, teacher, labels):
        p, q = softmax(teacher / temperature), softmax(student / temperature)
        return (1 - kd_rate) * cross_entropy(student, labels) + kd_rate * by_hand(p, q, beta)

    return losses


@pytest.mark.parametrize("counting", COUNTINGS)
def test_defaults(counting):
    check(todi, formula(), "logits", counting, "cpu")


@each_backend
@pytest.mark.parametrize("options", [{}, {"kd_rate": 0.3, "beta": 2.0}, {"kd_rate": 1.0, "temperature": 1.0}], ids=str)
def test_heads(options, backend):
    for sides in SIDES:
        check(lambda *args, **o: todi(*args, **o, **options), formula(**options), sides, "mask", backend)


@each_backend
def test_golden(backend):
    def of(**options):
        return lambda s, t: todi(s, t, kd_rate=1, backend=backend, **options)

    golden(of(temperature=1), 0.93760212, [-0.55461954, 0.45712405, -0.11090245, 0.18355629, 0.02484164])
    golden(of(), 0.26093963, [-0.13353161, 0.08516665, -0.04804372, 0.07048040, 0.02592829])
    golden(of(temperature=1, beta=2), 1.22780176, [-0.67327871, 0.57350491, -0.14173224, 0.21271782, 0.02878823])


def test_ignored_labels():
    problem = rows()
    labels = problem.labels.clone()
    labels[0], labels[2, 1] = -100, -100
    expected = formula()(*(x[labels >= 0] for x in problem.logits), labels[labels >= 0]).mean()
    torch.testing.assert_close(todi(problem.student, problem.teacher, labels), expected)


@settings(max_examples=20)
@given(seed=st.integers(0, 1000), temperature=st.floats(0.5, 4.0))
def test_values_are_those_of_jeffreys(seed, temperature):
    """At beta = 1, and half of them at beta = 0; the gradient is the same at beta = 0 alone."""
    torch.manual_seed(seed)
    problem = rows()
    options = {"temperature": temperature, "reduction": "none"}
    jeffreys = kd.divergence(problem.student, problem.teacher, "jeffreys", **options)
    torch.testing.assert_close(todi(problem.student, problem.teacher, kd_rate=1, **options), jeffreys)
    half = todi(problem.student, problem.teacher, kd_rate=1, beta=0, **options)
    torch.testing.assert_close(half, jeffreys / 2)
    gradients = [torch.autograd.grad(x.sum(), problem.student)[0] for x in (half, jeffreys / 2)]
    torch.testing.assert_close(*gradients)


def test_the_gradient_takes_the_weights_for_constants():
    p, q = torch.tensor([[0.7, 0.3]]).double(), torch.tensor([[0.2, 0.8]]).double()
    student = q.log().requires_grad_()
    loss = todi(student, p.log(), kd_rate=1, temperature=1)
    w = p / (p + q)
    frozen = (w * p * (p.log() - student.log_softmax(-1))).sum()
    frozen = frozen + ((1 - w) * student.softmax(-1) * (student.log_softmax(-1) - p.log())).sum()
    torch.testing.assert_close(torch.autograd.grad(loss, student), torch.autograd.grad(frozen, student))
    assert not torch.allclose(
        torch.autograd.grad(todi(student, p.log(), kd_rate=1, temperature=1), student)[0],
        torch.autograd.grad(kl(p, softmax(student)).sum() + kl(softmax(student), p).sum(), student)[0],
    )


def test_a_sparse_teacher():
    problem = rows()
    logprobs, ids = problem.teacher.log_softmax(-1).topk(11)
    loss = todi(problem.student, kd.TopK(ids, logprobs), problem.labels, temperature=1)
    torch.testing.assert_close(loss, todi(problem.student, problem.teacher, problem.labels, temperature=1))


@pytest.mark.parametrize(
    ("message", "error", "options"),
    [
        ("labels must be given unless kd_rate is 1", ValueError, {"labels": None}),
        ("kd_rate must be between 0 and 1, got 1.5", ValueError, {"kd_rate": 1.5}),
        ("kd_rate must be a number", TypeError, {"kd_rate": "half"}),
        ("ToDi: beta must be", ValueError, {"beta": -1.0}),
        ("labels must have the shape of the rows", ValueError, {"labels": torch.zeros(3).long()}),
        ("ids must be below the vocabulary", ValueError, {"labels": torch.full((3, 5), 11)}),
        ("got teacher_grad", TypeError, {"teacher_grad": True}),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_bad_arguments(message, error, options):
    problem = rows()
    with pytest.raises(error, match=message):
        todi(problem.student, problem.teacher, **({"labels": problem.labels} | options))
