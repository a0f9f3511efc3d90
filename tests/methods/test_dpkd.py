"""DPKD: the teacher's likeliest entry preferred to the student's."""

import math

import pytest
import torch
from by_hand import softmax
from row_problems import COUNTINGS, SIDES, check, golden, rows

from kd_kernels.methods import dpkd


def formula(beta=0.1):
    """From log-probabilities, with the normalisers that cancel."""

    def losses(student, teacher, labels):
        lp, lq = softmax(teacher).log(), softmax(student).log()
        row = torch.arange(len(lp))
        y_t, y_s = lp.argmax(-1), lq.argmax(-1)
        margin = (lq[row, y_t] - lq[row, y_s]) - (lp[row, y_t] - lp[row, y_s])
        return (1 + (-beta * margin).exp()).log()

    return losses


def called(**options):
    def method(student, teacher, labels, backend, **o):
        return dpkd(student, teacher, **o, **options)

    return method


@pytest.mark.parametrize("counting", COUNTINGS)
def test_defaults(counting):
    check(called(), formula(), "logits", counting, "cpu")


@pytest.mark.parametrize("beta", [0.1, 2.0])
@pytest.mark.parametrize("sides", SIDES)
def test_heads(sides, beta):
    check(called(beta=beta), formula(beta), sides, "mask", "cpu")


def test_golden():
    golden(dpkd, 0.79813887, [-0.05498340, 0.05498340, 0.0, 0.0, 0.0])


def test_where_both_choose_alike_there_is_nothing_to_learn():
    problem = rows()
    teacher = problem.teacher.clone()
    teacher[..., 4] = 9
    with torch.no_grad():
        problem.student[..., 4] = 7
    loss = dpkd(problem.student, teacher)
    assert loss.item() == pytest.approx(math.log(2))
    assert (torch.autograd.grad(loss, problem.student)[0] == 0).all()


def test_a_large_margin_is_no_overflow():
    student = torch.tensor([[0.0, 500.0, 0.0]], requires_grad=True)
    loss = dpkd(student, torch.tensor([[500.0, 0.0, 0.0]]), beta=1.0)
    assert loss.item() == pytest.approx(1000)
    torch.testing.assert_close(torch.autograd.grad(loss, student)[0], torch.tensor([[-1.0, 1.0, 0.0]]))


def test_vocabularies():
    problem = rows()
    expected = dpkd(problem.student[..., :9], problem.teacher[..., :9])
    torch.testing.assert_close(dpkd(problem.student, problem.teacher, vocab=9), expected)


@pytest.mark.parametrize(
    ("message", "error", "options"),
    [
        ("beta must be finite and not negative", ValueError, {"beta": -1}),
        ("beta must be a number", TypeError, {"beta": "0.1"}),
        ("got temperature", TypeError, {"temperature": 2.0}),
        ("mask must have the shape of the rows", ValueError, {"mask": torch.ones(3)}),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_bad_arguments(message, error, options):
    problem = rows()
    with pytest.raises(error, match=message):
        dpkd(problem.student, problem.teacher, **options)
