"""Sorted distances against torch.sort under autograd."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from problems import leaves

import kd_kernels as kd
from kd_kernels.testing.budget import assert_within_budget

NAN = math.nan
each_backend = pytest.mark.parametrize("backend", ["cpu", "reference"])
SIZES = [(1, 1), (5, 9), (9, 5), (1000, 777), (777, 1000), (3000, 3000)]


def by_sort(student, teacher, temperatures=(1.0, 1.0), k=None):
    q, p = (
        (x / t).softmax(-1).sort(dim=-1, descending=True, stable=True).values
        for x, t in zip((student, teacher), temperatures, strict=True)
    )
    width = max(q.shape[-1], p.shape[-1])
    q, p = (torch.nn.functional.pad(x, (0, width - x.shape[-1]))[..., :k] for x in (q, p))
    return (q - p).abs().sum(-1)


def test_golden():
    """Worked out by other means: value and gradient."""
    student = torch.tensor([0.5, 1.5, -0.5, 0.0, -2.0]).double().requires_grad_()
    loss = kd.sorted_l1(student, torch.tensor([2.0, 1.0, 0.5, -1.0, -3.0]).double())
    loss.backward()
    assert loss.item() == pytest.approx(0.11985789, abs=5e-9)
    expected = torch.tensor([-0.03947317, -0.10729920, 0.13957146, -0.02394169, 0.03114260]).double()
    torch.testing.assert_close(student.grad, expected, rtol=0, atol=5e-9)


@each_backend
@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("top_k", [None, 3, 10_000])
def test_float64(backend, sizes, top_k):
    student, teacher = (torch.randn(4, v).double() * 3 for v in sizes)
    upstream = torch.randn(4).double()
    (mine,), (truth,) = leaves(student), leaves(student)
    loss = kd.sorted_l1(mine, teacher, temperature=(1.5, 0.8), reduction="none", top_k=top_k, backend=backend)
    expected = by_sort(truth, teacher, (1.5, 0.8), top_k)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-15)
    for x in ((loss, mine), (expected, truth)):
        (x[0] * upstream).sum().backward()
    torch.testing.assert_close(mine.grad, truth.grad, rtol=1e-11, atol=1e-15)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("level", ["scalar", "avx2", "avx512"])
def test_accuracy(dtype, sizes, level):
    from kd_kernels import _core

    if int(getattr(_core.Simd, level)) > int(_core.best_simd()):
        pytest.skip(f"this processor has no {level}")
    student, teacher = ((torch.randn(3, v) * 3).to(dtype) for v in sizes)
    (mine,), (truth,), (eager,) = leaves(student), leaves(student.double()), leaves(student.float())
    _core.limit_simd(getattr(_core.Simd, level))
    try:
        loss = kd.sorted_l1(mine, teacher)
        loss.backward()
    finally:
        _core.limit_simd(_core.Simd.avx512)
    expected, by_eager = by_sort(truth, teacher.double()).mean(), by_sort(eager, teacher.float()).mean()
    expected.backward()
    by_eager.backward()
    assert_within_budget(loss, expected, by_eager, "loss", size=1.0)
    assert_within_budget(mine.grad, truth.grad, eager.grad.to(dtype), "gradient", size=truth.detach().softmax(1).max())


@each_backend
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_masks(backend, reduction, nan_in_fresh_memory):
    student, teacher = torch.randn(2, 3, 8).double(), torch.randn(2, 3, 11).double()
    weight = torch.tensor([[1.0, 0.0, 2.0], [0.5, 0.0, 0.0]]).double()
    student[weight == 0] = NAN
    (mine,), (truth,) = leaves(student), leaves(student.nan_to_num())
    loss = kd.sorted_l1(mine, teacher, mask=weight, reduction=reduction, backend=backend)
    rows = by_sort(truth, teacher) * weight
    expected = rows if reduction == "none" else rows.sum() if reduction == "sum" else rows.sum() / 3
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    loss.sum().backward()
    expected.sum().backward()
    torch.testing.assert_close(mine.grad, truth.grad, rtol=1e-11, atol=1e-15)


@each_backend
def test_labels_normalizer_and_no_rows(backend):
    student, teacher = torch.randn(4, 8), torch.randn(4, 5)
    labels = torch.tensor([1, -100, 2, -100])
    rows = by_sort(student, teacher)
    loss = kd.sorted_l1(student, teacher, labels=labels, normalizer=7, backend=backend)
    torch.testing.assert_close(loss, (rows[0] + rows[2]) / 7)
    (leaf,) = leaves(student)
    nothing = kd.sorted_l1(leaf, teacher, mask=torch.zeros(4), backend=backend)
    nothing.backward()
    assert nothing.item() == 0
    assert (leaf.grad == 0).all()
    (empty,) = leaves(torch.randn(0, 8))
    kd.sorted_l1(empty, torch.randn(0, 5), backend=backend).backward()
    assert empty.grad.shape == (0, 8)


@each_backend
def test_a_bad_row_stays_alone(backend):
    student, teacher = torch.randn(3, 40), torch.randn(3, 50)
    student[1, 7] = NAN
    loss = kd.sorted_l1(student, teacher, reduction="none", backend=backend)
    assert loss.isnan().tolist() == [False, True, False]


@given(st.integers(1, 60), st.integers(1, 60), st.integers(0, 2**31))
def test_order_does_not_matter(v, w, seed):
    torch.manual_seed(seed)
    student, teacher = torch.randn(2, v), torch.randn(2, w)
    loss = kd.sorted_l1(student, teacher, reduction="none")
    shuffled = kd.sorted_l1(student[:, torch.randperm(v)], teacher[:, torch.randperm(w)], reduction="none")
    assert torch.equal(loss, shuffled)
    assert (loss >= 0).all()
    assert (loss <= 2.00001).all()
    (leaf,) = leaves(student)
    (gradient,) = torch.autograd.grad(kd.sorted_l1(leaf, teacher, reduction="sum"), leaf)
    torch.testing.assert_close(gradient.sum(1), torch.zeros(2), rtol=0, atol=1e-6)
    assert kd.sorted_l1(student, student[:, torch.randperm(v)]).item() == 0


def test_equal_numbers_keep_their_order():
    """A stable sort: of equal logits the first has the larger rank, zeros of both signs included."""
    student = torch.tensor([[0.0, -0.0, 0.0, 1.0]], requires_grad=True)
    teacher = torch.tensor([[1.0, 0.5, 0.0, -0.5]])
    kd.sorted_l1(student, teacher, reduction="sum").backward()
    truth = student.detach().double().requires_grad_()
    by_sort(truth, teacher.double()).sum().backward()
    torch.testing.assert_close(student.grad.double(), truth.grad, rtol=1e-5, atol=1e-7)


def test_bits_do_not_depend_on_threads():
    student, teacher = torch.randn(20, 3000), torch.randn(20, 2500)
    found, threads = [], torch.get_num_threads()
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            (leaf,) = leaves(student)
            loss = kd.sorted_l1(leaf, teacher)
            found.append((loss, torch.autograd.grad(loss, leaf)[0]))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])
