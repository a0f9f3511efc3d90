"""Losses of distributions that do not add up to 1, against their formulas."""

import pytest
import torch

from kd_kernels.integrations import masses


def pair(rows=5, student=11, teacher=11, scale=1.0):
    """Masses from far below 1 to all of it."""
    logits = [2 * torch.randn(rows, n + 3, dtype=torch.float64) for n in (student, teacher)]
    parts = [x.softmax(-1)[:, :-3] * torch.rand(rows, 1, dtype=torch.float64) * scale for x in logits]
    return parts[0].requires_grad_(), parts[1]


def jsd(q, p, beta):
    if beta == 0:
        return (p * (p / q).log()).sum(-1)
    if beta == 1:
        return (q * (q / p).log()).sum(-1)
    m = beta * p + (1 - beta) * q
    return (beta * p * (p / m).log() + (1 - beta) * q * (q / m).log()).sum(-1)


def sorted_l1(q, p):
    width = max(q.shape[1], p.shape[1])
    q, p = (torch.nn.functional.pad(x.sort(-1, descending=True).values, (0, width - x.shape[1])) for x in (q, p))
    return (q - p).abs().sum(-1)


def compare(actual, expected, leaf):
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-12)
    weights = torch.rand_like(expected)
    gradients = [torch.autograd.grad(x @ weights, leaf)[0] for x in (actual, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("beta", [0.0, 0.2, 0.5, 1.0])
@pytest.mark.parametrize("scale", [1.0, 5.0])
def test_jsd(beta, scale):
    q, p = pair(scale=scale)
    compare(masses.jsd(q.log(), p.log(), beta), jsd(q, p, beta), q)


@pytest.mark.parametrize(("student", "teacher"), [(11, 11), (7, 11), (11, 4), (1, 1)])
@pytest.mark.parametrize("scale", [1.0, 5.0])
def test_sorted_l1(student, teacher, scale):
    q, p = pair(student=student, teacher=teacher, scale=scale)
    compare(masses.sorted_l1(q.log(), p.log()), sorted_l1(q, p), q)


def test_equal_masses():
    """Of equal sums, with which the gradient of a difference of sums would be anything."""
    q, p = (torch.randn(6, 9, dtype=torch.float64).softmax(-1) / 4 for _ in range(2))
    q.requires_grad_()
    compare(masses.jsd(q.log(), p.log(), 0.5), jsd(q, p, 0.5), q)
    compare(masses.sorted_l1(q.log(), p.log()), sorted_l1(q, p), q)


def test_float32():
    q, p = pair()
    exact = jsd(q, p, 0.3), sorted_l1(q, p)
    log_q, log_p = q.log().float(), p.log().float()
    ours = masses.jsd(log_q, log_p, 0.3), masses.sorted_l1(log_q, log_p)
    for actual, expected in zip(ours, exact, strict=True):
        assert actual.dtype == torch.float32
        torch.testing.assert_close(actual.double(), expected, rtol=1e-5, atol=3e-6)
