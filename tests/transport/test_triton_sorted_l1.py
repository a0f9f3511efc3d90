"""Distances of sorted distributions by the Triton backend against float64 autograd."""

import importlib
import math

import pytest
import torch

import kd_kernels as kd
from kd_kernels import ops
from kd_kernels.testing.budget import assert_within_budget

pytest.importorskip("triton")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def evaluate(student, teacher, dtype, backend, upstream=None, **options):
    device = DEVICE if backend == "triton" else "cpu"
    leaf = student.detach().to(device, dtype).requires_grad_()
    options = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in options.items()}
    loss = kd.sorted_l1(leaf, teacher.to(device, dtype), backend=backend, **options)
    loss.backward(None if upstream is None else upstream.to(device, loss.dtype))
    return loss.detach().cpu(), leaf.grad.cpu()


def check(student, teacher, **options):
    for reduction, upstream in (("none", torch.randn(student.shape[:-1])), ("mean", None)):
        options = options | {"reduction": reduction, "upstream": upstream}
        actual = evaluate(student, teacher, student.dtype, "triton", **options)
        truth = evaluate(student, teacher, torch.float64, "reference", **options)
        eager = evaluate(student, teacher, student.dtype, "reference", **options)
        for name, x, t, e in zip(("loss", "gradient"), actual, truth, eager, strict=True):
            assert_within_budget(x, t, e, f"{name}, {reduction}", size=1.0)


def logits(*shape):
    return 2 * torch.randn(*shape)


@pytest.mark.parametrize(("student", "teacher"), [(40, 40), (40, 25), (25, 40), (1, 3)])
@pytest.mark.parametrize("top_k", [None, 7, 33])
def test_value_and_gradient(student, teacher, top_k):
    check(logits(2, 5, student), logits(2, 5, teacher), top_k=top_k, temperature=(2.0, 1.5))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    check(logits(4, 40).to(dtype), logits(4, 30).to(dtype))


@pytest.mark.usefixtures("nan_in_fresh_memory")
def test_masked_rows_are_not_read():
    student, teacher, mask = logits(6, 20), logits(6, 30), torch.tensor([1, 0, 1, 1, 0, 0])
    student[mask == 0], teacher[mask == 0] = math.nan, math.nan
    check(student, teacher, mask=mask)
    check(student, teacher, mask=mask.float() * 0.3)


def test_forbidden_entries():
    student, teacher = logits(3, 20), logits(3, 20)
    student[:, ::3], teacher[:, ::2] = -math.inf, -math.inf
    check(student, teacher)


def test_rows_in_chunks(monkeypatch):
    launches = importlib.import_module("kd_kernels.backends.triton.sorted_l1")  # not the function of its name
    student, teacher = logits(5, 20), logits(5, 30)
    whole = evaluate(student, teacher, torch.float32, "triton")
    monkeypatch.setattr(launches, "_SORTED", 100)
    parts = evaluate(student, teacher, torch.float32, "triton")
    assert torch.equal(whole[0], parts[0])
    assert torch.equal(whole[1], parts[1])


def test_no_rows():
    check(logits(0, 20), logits(0, 30))


def test_opcheck():
    student, teacher, factor = logits(3, 20).to(DEVICE), logits(3, 15).to(DEVICE), torch.rand(3, device=DEVICE)
    torch.library.opcheck(ops.sorted_l1, (student, teacher, factor, [1.0, 1.0], 20, True, "triton"))
