"""Logits of a few entries: from heads without the others."""

import math

import pytest
import torch
from row_problems import MASK

import kd_kernels as kd
from kd_kernels.methods import few_entries

each_dtype = pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)


def head(dtype, **options):
    tensors = [torch.randn(*shape).to(dtype).requires_grad_() for shape in ((3, 5, 8), (30, 8), (30,))]
    return kd.Head(*tensors, **options)


def leaves(side):
    return [side.hidden, side.weight, side.bias]


@each_dtype
@pytest.mark.parametrize("options", [{}, {"scale": 0.7, "softcap": 1.5}], ids=str)
@pytest.mark.parametrize("mask", [None, MASK], ids=["all", "mask"])
def test_logits_of_a_head(mask, options, dtype, monkeypatch):
    """Products in float32 at least; gradients are sums in float32, rounded once. Ids occur more than once."""
    monkeypatch.setattr(few_entries, "_GATHERED", 8 * 6 * 4)  # four rows at a time
    side = head(dtype, **options)
    ids = torch.randint(30, (15, 6))
    exact = [x.detach().double().clone().requires_grad_() for x in leaves(side)]
    expected = kd.Head(*exact, **options).logits().reshape(15, 30).gather(1, ids)
    if mask is not None:
        expected = torch.where(mask.reshape(15, 1), expected, 0)
        with torch.no_grad():
            side.hidden[~mask] = math.nan
    actual = few_entries.logits_at(side, ids, None if mask is None else mask.reshape(-1))
    real = torch.float64 if dtype == torch.float64 else torch.float32
    assert actual.dtype == real
    tolerance = {"rtol": 1e-12, "atol": 1e-12} if dtype == torch.float64 else {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(actual.double(), expected, **tolerance)
    upstream = torch.randn(15, 6).to(real)
    gradients = torch.autograd.grad(actual, leaves(side), upstream)
    rounding = {"rtol": 2**-8, "atol": 1e-5} if dtype == torch.bfloat16 else tolerance
    for a, e in zip(gradients, torch.autograd.grad(expected, exact, upstream.double()), strict=True):
        assert a.dtype == dtype
        torch.testing.assert_close(a.double(), e, **rounding)


@each_dtype
def test_logits_of_logits(dtype):
    logits = torch.randn(3, 5, 30).to(dtype)[:, :, ::2].requires_grad_()
    ids = torch.randint(15, (15, 4))
    actual = few_entries.logits_at(logits, ids, None)
    expected = logits.double().reshape(15, 15).gather(1, ids)
    assert torch.equal(actual.double(), expected)
    (gradient,) = torch.autograd.grad(actual.sum(), logits)
    counts = torch.zeros(15, 15).scatter_add(1, ids, torch.ones(15, 4))
    torch.testing.assert_close(gradient.reshape(15, 15).float(), counts)


def test_largest(monkeypatch):
    monkeypatch.setattr(few_entries, "_SEARCHED", 30 * 4)
    side = head(torch.float64)
    logits = side.logits().detach()
    for columns in (30, 20):
        expected = logits[..., :columns].topk(5).indices.reshape(15, 5)
        assert torch.equal(few_entries.largest(side, 5, columns), expected)
        assert torch.equal(few_entries.largest(logits, 5, columns), expected)


def test_no_rows():
    side = kd.Head(torch.zeros(0, 8, requires_grad=True), torch.randn(30, 8))
    ids = few_entries.largest(side, 3, 30)
    assert ids.shape == (0, 3)
    assert torch.autograd.grad(few_entries.logits_at(side, ids, None).sum(), side.hidden)[0].shape == (0, 8)
