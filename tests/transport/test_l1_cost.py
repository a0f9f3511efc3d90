"""L1 costs against cdist under autograd."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from problems import leaves

import kd_kernels as kd
from kd_kernels.testing.budget import assert_within_budget

INF, NAN = math.inf, math.nan
each_backend = pytest.mark.parametrize("backend", ["cpu", "reference"])
# Rows around a tile of 4 and a block of 64, columns around a register, a block of 1024, and all 32 sums.
SHAPES = [(1, 1, 1, 1), (2, 3, 5, 7), (1, 4, 8, 16), (1, 9, 67, 1030), (2, 66, 3, 2047), (1, 2, 3, 40_000)]


def by_cdist(student, teacher, temperatures=(1.0, 1.0), softmax=True):
    if softmax:
        student, teacher = (
            (x / t).softmax(-1) for x, t in zip((student, teacher), temperatures, strict=True)
        )  # fmt: skip
    return torch.cdist(student, teacher, p=1)


def pair(batch, n, m, v, dtype=torch.float64, spread=3.0):
    return tuple((torch.randn(batch, k, v, dtype=torch.float64) * spread).to(dtype) for k in (n, m))


@each_backend
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("softmax", [True, False], ids=["logits", "vectors"])
def test_float64(backend, shape, softmax):
    student, teacher = pair(*shape)
    upstream = torch.randn(shape[:3]).double()
    (mine,), (truth,) = leaves(student), leaves(student)
    options = {"temperature": (2.0, 0.7)} if softmax else {}
    cost = kd.l1_cost(mine, teacher, softmax=softmax, backend=backend, **options)
    expected = by_cdist(truth, teacher, (2.0, 0.7), softmax)
    torch.testing.assert_close(cost, expected, rtol=1e-12, atol=1e-13)
    for x in ((cost, mine), (expected, truth)):
        (x[0] * upstream).sum().backward()
    torch.testing.assert_close(mine.grad, truth.grad, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("dtypes", [("float32", "float32"), ("bfloat16", "bfloat16"), ("float16", "float32")], ids=str)
@pytest.mark.parametrize("shape", SHAPES[1:], ids=str)
@pytest.mark.parametrize("level", ["scalar", "avx2", "avx512"])
def test_accuracy(dtypes, shape, level):
    from kd_kernels import _core

    if int(getattr(_core.Simd, level)) > int(_core.best_simd()):
        pytest.skip(f"this processor has no {level}")
    dtypes = [getattr(torch, d) for d in dtypes]
    student, teacher = (x.to(d) for x, d in zip(pair(*shape), dtypes, strict=True))
    upstream = torch.randn(shape[:3])
    (mine,), (truth,), (eager,) = leaves(student), leaves(student.double()), leaves(student.float())
    _core.limit_simd(getattr(_core.Simd, level))
    try:
        cost = kd.l1_cost(mine, teacher, temperature=1.5)
        (cost * upstream).sum().backward()
    finally:
        _core.limit_simd(_core.Simd.avx512)
    expected = by_cdist(truth, teacher.double(), (1.5, 1.5))
    by_eager = by_cdist(eager, teacher.float(), (1.5, 1.5))
    assert_within_budget(cost, expected, by_eager, "cost")
    (expected * upstream).sum().backward()
    (by_eager * upstream).sum().backward()
    assert_within_budget(mine.grad, truth.grad, eager.grad.to(dtypes[0]), "gradient")


@each_backend
def test_masks_and_columns(backend, nan_in_fresh_memory):
    student, teacher = pair(2, 70, 66, 300)
    student_mask, teacher_mask = torch.rand(2, 70) < 0.6, torch.rand(2, 66) < 0.6
    student[~student_mask] = NAN
    teacher[~teacher_mask] = NAN
    student[:, :, 290:] = teacher[:, :, 290:] = INF
    (leaf,) = leaves(student)
    cost = kd.l1_cost(
        leaf, teacher, student_mask=student_mask, teacher_mask=teacher_mask.int(), vocab=290, backend=backend
    )
    both = student_mask[:, :, None] & teacher_mask[:, None, :]
    assert (cost[~both] == 0).all()
    cost.sum().backward()
    assert (leaf.grad[~student_mask] == 0).all()
    assert (leaf.grad[:, :, 290:] == 0).all()
    for i in range(2):
        (alone,) = leaves(student[i, student_mask[i], :290])
        expected = by_cdist(alone, teacher[i, teacher_mask[i], :290])
        found = cost[i][both[i]].reshape(expected.shape)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)
        expected.sum().backward()
        torch.testing.assert_close(leaf.grad[i, student_mask[i], :290], alone.grad, rtol=1e-11, atol=1e-14)


def test_other_sizes_of_vocabulary():
    student, teacher = pair(1, 3, 4, 20)
    short = teacher[:, :, :17]
    with pytest.raises(ValueError, match="vocab='common'"):
        kd.l1_cost(student, short)
    cost = kd.l1_cost(student, short, vocab="common")
    torch.testing.assert_close(cost, by_cdist(student[:, :, :17], short), rtol=1e-12, atol=0)


@each_backend
def test_equal_rows_cost_nothing_and_ask_for_nothing(backend):
    """A row that equals its partner in every entry has gradient 0 from it, wherever the derivative of |0| is put."""
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        student, _ = pair(1, 1, 1, 500, dtype)
        (leaf,) = leaves(student)
        cost = kd.l1_cost(leaf, student, backend=backend)
        assert cost.item() == 0
        cost.backward()
        rounding = torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps
        assert (leaf.grad.double().abs() <= 4 * rounding * student.double().softmax(-1)).all()


def test_ties_between_vectors_have_derivative_zero():
    x = torch.tensor([[0.5, 0.25, 0.25]], requires_grad=True)
    kd.l1_cost(x, torch.tensor([[0.5, 0.0, 1.0]]), softmax=False).backward()
    assert x.grad.tolist() == [[0.0, 1.0, -1.0]]


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 40), st.floats(0.2, 5), st.integers(0, 2**31))
def test_a_distance(n, m, v, temperature, seed):
    torch.manual_seed(seed)
    student, teacher = pair(1, n, m, v)
    cost = kd.l1_cost(student, teacher, temperature=temperature)
    assert (cost >= 0).all()
    assert (cost <= 2 + 1e-12).all()
    torch.testing.assert_close(cost.mT, kd.l1_cost(teacher, student, temperature=temperature), rtol=1e-13, atol=1e-14)
    (leaf,) = leaves(student)
    (gradient,) = torch.autograd.grad(kd.l1_cost(leaf, teacher, temperature=temperature).sum(), leaf)
    torch.testing.assert_close(gradient.sum(-1), torch.zeros(1, n).double(), rtol=0, atol=1e-12 * m)


def test_forbidden_entries():
    """Logits of -inf have probability 0 and gradient 0."""
    student, teacher = pair(1, 3, 3, 50)
    student[0, :, 7] = teacher[0, 1, 9] = -INF
    (leaf,), (truth,) = leaves(student), leaves(student)
    cost, expected = kd.l1_cost(leaf, teacher), by_cdist(truth, teacher)
    torch.testing.assert_close(cost, expected, rtol=1e-12, atol=0)
    cost.sum().backward()
    expected.sum().backward()
    torch.testing.assert_close(leaf.grad, truth.grad, rtol=1e-11, atol=1e-14)
    assert (leaf.grad[0, :, 7] == 0).all()


@each_backend
def test_bad_rows_stay_among_themselves(backend):
    student, teacher = pair(1, 5, 4, 30)
    student[0, 2, 3], teacher[0, 1, 1] = NAN, INF
    cost = kd.l1_cost(student, teacher, backend=backend)[0]
    bad = torch.zeros(5, 4, dtype=torch.bool)
    bad[2] = bad[:, 1] = True
    assert torch.equal(cost.isnan(), bad)


@each_backend
@pytest.mark.parametrize("shape", [(0, 2), (2, 0), (0, 0)])
def test_no_rows(backend, shape):
    n, m = shape
    (leaf,) = leaves(torch.randn(3, n, 6))
    cost = kd.l1_cost(leaf, torch.randn(3, m, 6), backend=backend)
    assert cost.shape == (3, n, m)
    cost.sum().backward()
    assert leaf.grad.shape == leaf.shape
    assert (leaf.grad == 0).all()


def test_leading_dimensions_and_layouts():
    student, teacher = torch.randn(2, 3, 4, 9), torch.randn(2, 3, 5, 9)
    cost = kd.l1_cost(student, teacher)
    assert cost.shape == (2, 3, 4, 5)
    assert torch.equal(cost[1, 2], kd.l1_cost(student[1, 2], teacher[1, 2]))
    for view in (student.mT.contiguous().mT, torch.cat([student, student], -1)[..., :9]):
        (x,), (y,) = leaves(view), leaves(student)
        results = [kd.l1_cost(z, teacher) for z in (x, y)]
        assert torch.equal(*results)
        assert torch.equal(*(torch.autograd.grad(r.sum(), z)[0] for r, z in zip(results, (x, y), strict=True)))


def test_bits_depend_on_the_pair_alone():
    student, teacher = pair(1, 130, 70, 5000, torch.float32)
    upstream = torch.randn(1, 130, 70)
    found, threads = [], torch.get_num_threads()
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            (leaf,) = leaves(student)
            cost = kd.l1_cost(leaf, teacher)
            found.append((cost, torch.autograd.grad(cost, leaf, upstream)[0]))
    finally:
        torch.set_num_threads(threads)
    for cost, gradient in found[1:]:
        assert torch.equal(cost, found[0][0])
        assert torch.equal(gradient, found[0][1])
    assert torch.equal(kd.l1_cost(student[:, 100:103], teacher[:, 65:]), found[0][0][:, 100:103, 65:])
