"""KDRL's estimates of the KL from sampled tokens."""

import math

import pytest
import torch
from by_hand import BACKENDS, kl, softmax
from hypothesis import given, settings
from hypothesis import strategies as st
from row_problems import COUNTINGS, MASK, SIDES, WEIGHTS, check, golden, reduced, rows

from kd_kernels.methods import kdrl, kl_estimate

ESTIMATORS = ("k1", "k2", "k3")
each_backend = pytest.mark.parametrize("backend", BACKENDS)
each_estimator = pytest.mark.parametrize("estimator", ESTIMATORS)


def estimate(r, estimator):
    return {"k1": lambda: -r, "k2": lambda: r**2 / 2, "k3": lambda: r.exp() - r - 1}[estimator]()


def formula(estimator, temperature=1.0):
    def losses(student, teacher, labels):
        row = torch.arange(len(labels))
        lp, lq = softmax(teacher / temperature).log(), softmax(student / temperature).log()
        return estimate(lp[row, labels] - lq[row, labels], estimator)

    return losses


def called(**options):
    return lambda *args, **o: kdrl(*args, **o, **options)


@pytest.mark.parametrize("counting", COUNTINGS)
@each_estimator
def test_formula(estimator, counting):
    check(called(estimator=estimator), formula(estimator), "logits", counting, "cpu")


@each_backend
@each_estimator
def test_heads(estimator, backend):
    for sides in SIDES:
        check(called(estimator=estimator, temperature=1.4), formula(estimator, 1.4), sides, "weights", backend)


@each_backend
def test_golden(backend):
    def of(estimator):
        return lambda s, t: kdrl(s, t, torch.tensor([1]), estimator=estimator, backend=backend)

    golden(of("k2"), 0.43798505, [-0.19601601, 0.40310597, -0.07211026, -0.11888972, -0.01608997])
    golden(of("k3"), 0.32815260, [-0.12728975, 0.26177074, -0.04682728, -0.07720513, -0.01044858])


@each_estimator
@pytest.mark.parametrize("counting", COUNTINGS)
def test_from_log_probabilities(estimator, counting):
    of_rows = COUNTINGS[counting]
    student = -5 * torch.rand(3, 5, dtype=torch.float64)
    teacher = -5 * torch.rand(3, 5, dtype=torch.float64)
    student.requires_grad_()
    counted = of_rows.get("mask", torch.ones(3, 5)) != 0
    expected = reduced(estimate((teacher - student)[counted], estimator), of_rows)
    upstream = torch.randn_like(expected)
    (gradient,) = torch.autograd.grad(expected, student, upstream)
    with torch.no_grad():
        student[~counted], teacher[~counted] = math.nan, -math.inf
    loss = kl_estimate(student, teacher, estimator, **of_rows)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(torch.autograd.grad(loss, student, upstream)[0], gradient)


def test_ignored_tokens():
    problem = rows()
    ids = torch.where(MASK, problem.labels, -100)
    expected = formula("k2")(*(x[MASK] for x in problem.logits), problem.labels[MASK])
    torch.testing.assert_close(kdrl(problem.student, problem.teacher, ids), expected.mean())
    both = (WEIGHTS != 0) & MASK
    weighted = formula("k2")(*(x[both] for x in problem.logits), problem.labels[both]) * WEIGHTS[both]
    loss = kdrl(problem.student, problem.teacher, ids, mask=WEIGHTS, reduction="sum")
    torch.testing.assert_close(loss, weighted.sum())


@settings(max_examples=20)
@given(seed=st.integers(0, 1000), temperature=st.floats(0.5, 3.0))
def test_expectations(seed, temperature):
    """Over tokens that the student draws: of values, k1 and k3 give KL(q, p); of gradients, k1 gives 0, k2 that of
    KL(q, p) and k3 that of KL(p, q)."""
    torch.manual_seed(seed)
    student = torch.randn(1, 6, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(1, 6, dtype=torch.float64)
    p, q = (softmax(x / temperature) for x in (teacher, student))
    reverse, forward = kl(q, p).sum(), kl(p, q).sum()
    truth = {k: torch.autograd.grad(x, student, retain_graph=True)[0] for k, x in (("k2", reverse), ("k3", forward))}
    truth["k1"] = torch.zeros(1, 6, dtype=torch.float64)
    every = torch.arange(6)
    for estimator in ESTIMATORS:
        losses = kdrl(
            student.expand(6, 6), teacher.expand(6, 6), every, estimator=estimator, temperature=temperature,
            reduction="none",
        )  # fmt: skip
        if estimator != "k2":
            torch.testing.assert_close((q[0] * losses).sum(), reverse)
        (gradient,) = torch.autograd.grad((q[0].detach() * losses).sum(), student)
        torch.testing.assert_close(gradient, truth[estimator], rtol=1e-9, atol=1e-12)


def test_k3_near_convergence():
    """Where e^R - R - 1 would have no digit left in float32."""
    r = torch.cat([torch.logspace(-12, 0, 60), -torch.logspace(-12, 0, 60)]).double()
    student = torch.zeros_like(r, requires_grad=True)
    terms = torch.stack([r**n / float(math.factorial(n)) for n in range(30)])
    exact, slope = terms[2:].sum(0), -terms[1:].sum(0)
    for dtype in (torch.float64, torch.float32):
        leaf = student.detach().to(dtype).requires_grad_()
        losses = kl_estimate(leaf, r.to(dtype), "k3", reduction="none")
        eps = 4 * torch.finfo(dtype).eps
        torch.testing.assert_close(losses.double(), exact, rtol=3 * eps, atol=0)
        (gradient,) = torch.autograd.grad(losses.sum(), leaf)
        torch.testing.assert_close(gradient.double(), slope, rtol=3 * eps, atol=0)


def test_half_precision_is_widened():
    student, teacher = torch.tensor([-1.0, -2.0]).bfloat16(), torch.tensor([-1.5, -0.5]).bfloat16()
    loss = kl_estimate(student, teacher, reduction="none")
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, torch.tensor([0.125, 1.125]))


@pytest.mark.parametrize(
    ("message", "error", "call"),
    [
        ("estimator must be one of k1, k2, k3", ValueError, lambda s, t, y: kdrl(s, t, y, estimator="k4")),
        ("takes no labels", TypeError, lambda s, t, y: kdrl(s, t, y, labels=y)),
        ("labels must have the shape of the rows", ValueError, lambda s, t, y: kdrl(s, t, y[0])),
        ("ids must be below the vocabulary", ValueError, lambda s, t, y: kdrl(s, t, y + 11)),
        ("vocabularies of 11 and 9", ValueError, lambda s, t, y: kdrl(s, t[..., :9], y)),
        ("temperature must be a number", TypeError, lambda s, t, y: kdrl(s, t, y, temperature=(1.0, 2.0))),
        ("student_logprobs must be a tensor", TypeError, lambda s, t, y: kl_estimate(0.5, t)),
        ("teacher_logprobs must have the shape", ValueError, lambda s, t, y: kl_estimate(s[0], t)),
        ("teacher_logprobs must both be float64", TypeError, lambda s, t, y: kl_estimate(s, t.float())),
        ("student_logprobs must be float32", TypeError, lambda s, t, y: kl_estimate(y, t)),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_bad_arguments(message, error, call):
    problem = rows()
    with pytest.raises(error, match=message):
        call(problem.student, problem.teacher, problem.labels)
