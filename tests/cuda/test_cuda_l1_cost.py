"""L1 costs of the CUDA backend and their gradient against the definition in float64."""

import math

import pytest
import torch

from kd_kernels.testing.budget import assert_within_budget

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
INF, NAN = math.inf, math.nan
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype)[6:])
# The columns of a problem are cut as if it were one of so many rows that ranges are long.
FEW_RANGES = {"l1_cost._THREADS": 64}


def pair(batch, n, m, v, dtype=torch.float32, spread=3.0):
    return tuple((torch.randn(batch, k, v) * spread).to(dtype) for k in (n, m))


def run(cuda, student, teacher, upstream, *, masks=(None, None), temperatures=(1.0, 1.0), columns=None, softmax=True,
        **options):  # fmt: skip
    spec = (*masks, [1 / t for t in temperatures], columns or student.shape[2], softmax)
    cost, statistics = cuda.l1_cost(student, teacher, *spec, **options)
    return cost, cuda.l1_cost_backward(upstream, statistics, student, teacher, *spec, **options)


def definition(student, teacher, upstream, temperatures, real=torch.float64):
    leaf = student.to(real, copy=True).requires_grad_()
    q, p = ((x / t).softmax(-1) for x, t in zip((leaf, teacher.to(real)), temperatures, strict=True))
    cost = torch.cdist(q, p, p=1)
    (gradient,) = torch.autograd.grad((cost * upstream).sum(), leaf)
    return cost.detach(), gradient.to(student.dtype if real != torch.float64 else real)


def at_a_tie(student, teacher, temperatures):
    """Where log q and log p differ by no more than both are rounded, so that either sign is right."""
    log_q, log_p = ((x.double() / t).log_softmax(-1) for x, t in zip((student, teacher), temperatures, strict=True))
    tie = torch.zeros(student.shape, dtype=torch.bool)
    for j in range(teacher.shape[1]):
        other = log_p[:, j, None]
        rounding = 2 * torch.finfo(torch.float32).eps * (log_q.abs() + other.abs())
        tie |= rounding.isfinite() & ((log_q - other).abs() <= rounding)
    return tie


def check(cuda, student, teacher, **options):
    temperatures = options.get("temperatures", (1.0, 1.0))
    upstream = torch.randn(len(student), student.shape[1], teacher.shape[1])
    cost, gradient = run(cuda, student, teacher, upstream, **options)
    truth = definition(student, teacher, upstream, temperatures)
    eager = definition(student, teacher, upstream, temperatures, torch.float32)
    assert_within_budget(cost, truth[0], eager[0], "cost")
    tie = at_a_tie(student, teacher, temperatures)
    assert tie.float().mean() < 0.01 or tie.all()
    largest = (student.double() / temperatures[0]).softmax(-1).max() / temperatures[0]
    size = (largest * upstream.abs().sum(2).max()).item()
    assert_within_budget(*(x.where(~tie, 0) for x in (gradient, truth[1], eager[1])), "gradient", size)


@each_dtype
@pytest.mark.parametrize("v", [1, 7, 1000, 32003])
def test_within_budget(emulated, v, dtype):
    check(emulated, *pair(2 if v < 32003 else 1, 3, 5, v, dtype), temperatures=(1.5, 1.5))


@each_dtype
def test_a_large_vocabulary(emulated, dtype):
    check(emulated, *pair(1, 1, 2, 151_936, dtype), temperatures=(2.0, 2.0))


@each_dtype
def test_more_rows_than_a_tile(emulated, dtype):
    check(emulated, *pair(2, 35, 41, 90, dtype), temperatures=(2.0, 0.7))
    student, teacher = pair(1, 101, 110, 40, dtype)
    check(emulated, student, teacher)


@each_dtype
def test_long_ranges_and_groups_of_tiles(emulated, dtype):
    student, teacher = pair(2, 3, 4, 2100, dtype)
    check(emulated, student, teacher, constants=FEW_RANGES | {"l1_cost._GAINS": 2100 * 32})


@each_dtype
def test_vectors(emulated, dtype):
    """Multiples of 1/2, so that sums are exact and some entries are equal: there the derivative is 0."""
    student, teacher = (x.round() / 2 for x in pair(2, 34, 20, 30, dtype))
    upstream = torch.randint(-3, 4, (2, 34, 20)).float()
    cost, gradient = run(emulated, student, teacher, upstream, softmax=False)
    q, p = student.double()[:, :, None], teacher.double()[:, None]
    assert torch.equal(cost.double(), (q - p).abs().sum(3))
    assert torch.equal(gradient.double(), ((q - p).sign() * upstream[..., None]).sum(2))


@each_dtype
@pytest.mark.parametrize("softmax", [True, False], ids=["logits", "vectors"])
def test_masks_and_columns(emulated, softmax, dtype):
    """NaN where nothing is read; the results of the rows that count, from the problem that has no others."""
    student, teacher = pair(2, 35, 40, 70, dtype)
    student_mask, teacher_mask = torch.rand(2, 35) < 0.6, torch.rand(2, 40) < 0.6
    student_mask[1, :32] = False
    student_mask[:, 32:] = teacher_mask[:, :2] = True
    student[~student_mask] = teacher[~teacher_mask] = NAN
    student[:, :, 61:] = teacher[:, :, 61:] = INF
    upstream = torch.randn(2, 35, 40)
    cost, gradient = run(
        emulated, student, teacher, upstream, masks=(student_mask, teacher_mask), columns=61, softmax=softmax
    )
    both = student_mask[:, :, None] & teacher_mask[:, None, :]
    assert (cost[~both] == 0).all()
    assert (gradient[~student_mask] == 0).all()
    assert (gradient[:, :, 61:] == 0).all()
    for i in range(2):
        rows, others = student_mask[i], teacher_mask[i]
        alone = student[i : i + 1, rows, :61], teacher[i : i + 1, others, :61]
        expected = run(emulated, *alone, upstream[i : i + 1, rows][:, :, others].contiguous(), softmax=softmax)
        assert torch.equal(cost[i][both[i]].reshape(expected[0].shape), expected[0])
        near = {torch.float32: 1e-6, torch.bfloat16: 1e-2, torch.float16: 2e-3}[dtype]
        error = (gradient[i, rows, :61] - expected[1][0]).abs().max()
        assert error <= near * expected[1].abs().max()


def test_one_entry(emulated):
    """All its probabilities are 1."""
    cost, gradient = run(emulated, *pair(2, 3, 5, 1), torch.ones(2, 3, 5))
    assert (cost == 0).all()
    assert (gradient == 0).all()


def test_nothing_counts(emulated):
    student, teacher = (torch.full((1, k, 9), NAN) for k in (2, 3))
    nobody = torch.zeros(1, 2, dtype=torch.bool)
    cost, gradient = run(emulated, student, teacher, torch.ones(1, 2, 3), masks=(nobody, None))
    assert (cost == 0).all()
    assert (gradient == 0).all()


@pytest.mark.parametrize("shape", [(0, 2, 3, 9), (2, 0, 3, 9), (2, 3, 0, 9)], ids=str)
def test_empty(emulated, shape):
    batch, n, m, v = shape
    cost, gradient = run(emulated, *pair(*shape), torch.ones(batch, n, m))
    assert cost.shape == (batch, n, m)
    assert gradient.shape == (batch, n, v)
    assert (gradient == 0).all()


@each_dtype
def test_layouts(emulated, dtype):
    """The same bits from rows that begin anywhere, of any strides, with an upstream that is expanded."""
    student, teacher = pair(2, 3, 5, 300, dtype)
    upstream = torch.randn(2, 3, 1).expand(2, 3, 5)
    expected = run(emulated, student, teacher, upstream)
    for first, width in ((0, 307), (1, 301), (3, 320)):
        views = []
        for x in (student, teacher):
            memory = torch.full((x.shape[1], 2, width), NAN, dtype=dtype)
            memory[:, :, first : first + 300] = x.transpose(0, 1)
            views.append(memory[:, :, first : first + 300].transpose(0, 1))
        assert all(map(torch.equal, run(emulated, *views, upstream), expected))
    columns = (x.mT.contiguous().mT for x in (student, teacher))
    assert all(map(torch.equal, run(emulated, *columns, upstream), expected))


def test_same_bits_every_time_and_whatever_the_batch(emulated):
    student, teacher = pair(3, 33, 5, 1100)
    upstream = torch.randn(3, 33, 5)
    first = run(emulated, student, teacher, upstream)
    for seed in (1, 2):
        assert all(map(torch.equal, run(emulated, student, teacher, upstream, seed=seed), first))
    for i in range(3):
        one = slice(i, i + 1)
        alone = run(emulated, student[one], teacher[one], upstream[one])
        assert torch.equal(alone[0], first[0][one])
        assert torch.equal(alone[1], first[1][one])


def test_equal_rows_cost_nothing_and_ask_for_nothing(emulated):
    student, _ = pair(1, 1, 1, 500)
    cost, gradient = run(emulated, student, student, torch.ones(1, 1, 1))
    assert cost.item() == 0
    assert (gradient == 0).all()


def test_forbidden_entries(emulated):
    """Logits of -inf have probability 0 and gradient 0; a row of nothing else, and NaN, spoil themselves alone."""
    student, teacher = pair(1, 4, 4, 90)
    student[0, :, 8:24] = teacher[0, 1, 40:] = -INF
    check(emulated, student, teacher)
    upstream = torch.ones(1, 4, 4)
    before = run(emulated, student, teacher, upstream)
    assert (before[1][0, :, 8:24] == 0).all()
    student[0, 2] = -INF
    student[0, 3, 5] = NAN
    cost, gradient = run(emulated, student, teacher, upstream)
    assert cost[0, 2:].isnan().all()
    assert gradient[0, 2:].isnan().all()
    assert torch.equal(cost[0, :2], before[0][0, :2])
    assert torch.equal(gradient[0, :2], before[1][0, :2])
