"""`Divergence.h` is q dD/dq, by float64 autograd through `Divergence.rows`."""

import math

import pytest
import torch
from support import each_kind
from torch import Tensor

from kd_kernels.testing.inputs import far_pair, near_pair, one_hot_pair

INF = math.inf
COLUMNS = 60
LISTED = slice(7, 31)  # of them, for sums over a part of the row


def certain(rows, columns, dtype):
    return one_hot_pair(rows, columns, dtype, height=20.0)


def tied(rows, columns, dtype):
    """Teachers of few different numbers, students that are right about some of them."""
    student, _ = far_pair(rows, columns, dtype)
    teacher = torch.arange(rows * columns, dtype=dtype).reshape(rows, columns) % 5
    return student, teacher


def forbidden(rows, columns, dtype):
    """-inf on the student's side, on the teacher's, on both."""
    student, teacher = far_pair(rows, columns, dtype)
    student[0, 9] = teacher[1, 10] = -INF
    student[2, 20:40] = teacher[2, 15:30] = -INF
    student[3:, ::3] = teacher[3:, ::3] = -INF
    return student, teacher


def underflowing(rows, columns, dtype):
    """Entries whose probability is 0, and their logarithm not."""
    student, teacher = far_pair(rows, columns, dtype)
    student[::2, 9] = teacher[1:, 9] = -800
    student[:, 12] = teacher[:, 13] = -800
    return student, teacher


each_regime = pytest.mark.parametrize(
    "pair", [far_pair, near_pair, certain, tied, forbidden, underflowing], ids=lambda f: f.__name__
)


def log_probabilities(pair) -> tuple[Tensor, Tensor]:
    """log p, log q of some rows, equal in some of the entries and in all of the last row."""
    student, teacher = pair(6, COLUMNS, torch.float64)
    log_p, log_q = teacher.log_softmax(-1), student.log_softmax(-1)
    log_q[:, 25:28] = log_p[:, 25:28]
    log_q[5] = log_p[5]
    return log_p, log_q


def assert_same(actual: Tensor, expected: Tensor) -> None:
    assert not expected.isnan().any()
    torch.testing.assert_close(actual, expected, rtol=1e-11, atol=1e-12)


@each_kind
@each_regime
def test_over_a_part_of_the_row(kind, pair):
    """No sum of probabilities is known: h itself, not h up to a multiple of q."""
    log_p, log_q = (x[:, LISTED].clone() for x in log_probabilities(pair))
    assert (log_q.exp().sum(-1) < 1).all()
    leaf = log_q.clone().requires_grad_()
    (expected,) = torch.autograd.grad(kind.rows(log_p, leaf).sum(), leaf)
    assert_same(kind.h(log_p, log_q), expected)


@each_kind
@each_regime
def test_over_whole_rows(kind, pair):
    """dD/dz = h - q sum h; of rows where D is finite, as an infinite one has no gradient to speak of."""
    student, teacher = pair(6, COLUMNS, torch.float64)
    student[5] = teacher[5]
    leaf = student.clone().requires_grad_()
    log_p, log_q = teacher.log_softmax(-1), leaf.log_softmax(-1)
    losses = kind.rows(log_p, log_q)
    finite = losses.isfinite()
    assert finite.sum() >= 3
    (expected,) = torch.autograd.grad(losses[finite].sum(), leaf)
    log_p, log_q = log_p[finite], log_q[finite].detach()
    h = kind.h(log_p, log_q)
    assert_same(h - log_q.exp() * h.sum(-1, keepdim=True), expected[finite])


@each_kind
def test_of_one_entry_and_of_none(kind):
    log_p, log_q = torch.tensor([[0.3], [0.5]], dtype=torch.float64).log()
    leaf = log_q.clone().requires_grad_()
    (expected,) = torch.autograd.grad(kind.rows(log_p, leaf), leaf)
    assert_same(kind.h(log_p, log_q), expected)
    nothing = torch.full((4,), -INF, dtype=torch.float64)
    assert (kind.h(nothing, nothing) == 0).all()
