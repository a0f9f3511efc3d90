"""The Triton kernels of L1 costs against float64 autograd."""

import importlib
import math

import pytest
import torch

import kd_kernels as kd
from kd_kernels import ops
from kd_kernels.testing.budget import assert_within_budget

pytest.importorskip("triton")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def evaluate(student, teacher, upstream, dtype, backend, **options):
    device = DEVICE if backend == "triton" else "cpu"
    leaf = student.detach().to(device, dtype).requires_grad_()
    options = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in options.items()}
    cost = kd.l1_cost(leaf, teacher.to(device, dtype), backend=backend, **options)
    cost.backward(upstream.to(device, cost.dtype))
    return cost.detach().cpu(), leaf.grad.cpu()


def check(student, teacher, **options):
    upstream = torch.randn(*student.shape[:-1], teacher.shape[-2])
    actual = evaluate(student, teacher, upstream, student.dtype, "triton", **options)
    truth = evaluate(student, teacher, upstream, torch.float64, "reference", **options)
    eager = evaluate(student, teacher, upstream, student.dtype, "reference", **options)
    for name, x, t, e in zip(("cost", "gradient"), actual, truth, eager, strict=True):
        assert_within_budget(x, t, e, name, size=1.0 if name == "cost" else 0.0)
    return actual


def logits(*shape):
    return 2 * torch.randn(*shape)


@pytest.mark.parametrize("temperature", [1.0, (2.0, 1.5)])
def test_value_and_gradient(temperature):
    check(logits(2, 5, 200), logits(2, 7, 200), temperature=temperature)


def test_several_tiles():
    check(logits(1, 70, 20), logits(1, 66, 20))


def test_vocabulary_in_slices():
    check(logits(1, 3, 1100), logits(1, 2, 1100))


def test_one_row_and_one_entry():
    check(logits(3, 1, 5), logits(3, 1, 5))
    check(logits(1, 2, 1), logits(1, 3, 1))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    check(logits(1, 5, 100).to(dtype), logits(1, 4, 100).to(dtype))


def test_columns_beyond_the_common_ones():
    student, teacher = logits(2, 3, 150), logits(2, 4, 140)
    student[..., 130:], teacher[..., 130:] = math.nan, math.nan
    _, gradient = check(student, teacher, vocab=130)
    assert (gradient[..., 130:] == 0).all()


def test_vectors_that_are_no_logits():
    student, teacher = logits(2, 3, 150), logits(2, 4, 150)
    student[:, 1, 3:90] = teacher[:, 2, 3:90]
    _, gradient = check(student, teacher, vocab=140, softmax=False)
    assert (gradient[..., 140:] == 0).all()


def test_equal_entries_have_no_sign():
    x = torch.rand(1, 1, 6)
    _, gradient = evaluate(x, x.clone(), torch.ones(1, 1, 1), torch.float32, "triton", softmax=False)
    assert (gradient == 0).all()


@pytest.mark.parametrize("softmax", [True, False])
@pytest.mark.usefixtures("nan_in_fresh_memory")
def test_masked_rows_are_not_read(softmax):
    student, teacher = logits(2, 5, 140), logits(2, 4, 140)
    student_mask = torch.tensor([[1, 0, 1, 1, 0], [0, 0, 0, 0, 0]])
    teacher_mask = torch.tensor([[1, 0, 1, 1], [1, 0, 0, 1]])
    student[student_mask == 0], teacher[teacher_mask == 0] = math.nan, math.nan
    cost, gradient = check(
        student, teacher, student_mask=student_mask, teacher_mask=teacher_mask, softmax=softmax
    )  # fmt: skip
    assert (cost[student_mask == 0] == 0).all()
    assert (gradient[student_mask == 0] == 0).all()
    assert (cost.transpose(1, 2)[teacher_mask == 0] == 0).all()


def test_forbidden_entries():
    student, teacher = logits(1, 3, 80), logits(1, 3, 80)
    student[:, :, ::3], teacher[:, :, ::2] = -math.inf, -math.inf
    check(student, teacher)


def test_a_row_without_a_softmax():
    student = logits(1, 3, 20)
    student[0, 1] = -math.inf
    cost = kd.l1_cost(student.to(DEVICE), logits(1, 2, 20).to(DEVICE), backend="triton")
    assert cost[0, 1].isnan().all()
    assert cost[0, [0, 2]].isfinite().all()


def test_strides():
    student, teacher = logits(60, 3, 2).permute(2, 1, 0), logits(4, 2, 60).transpose(0, 1)
    check(student, teacher)
    upstream = torch.randn(1, 1, 1).expand(2, 3, 4)
    one = evaluate(student, teacher, upstream, torch.float32, "triton")
    two = evaluate(student.contiguous(), teacher.contiguous(), upstream.contiguous(), torch.float32, "triton")
    assert torch.equal(one[0], two[0])
    assert torch.equal(one[1], two[1])


@pytest.mark.parametrize("shape", [(0, 2, 3), (2, 0, 3), (2, 3, 0)])
@pytest.mark.usefixtures("nan_in_fresh_memory")
def test_empty(shape):
    batch, n, m = shape
    cost, gradient = check(logits(batch, n, 9), logits(batch, m, 9))
    assert cost.shape == shape
    assert (gradient == 0).all()


def test_rows_in_chunks(monkeypatch):
    launches = importlib.import_module("kd_kernels.backends.triton.l1_cost")  # not the function of its name
    student, teacher, upstream = logits(2, 40, 30), logits(2, 3, 30), torch.randn(2, 40, 3)
    whole = evaluate(student, teacher, upstream, torch.float32, "triton")
    monkeypatch.setattr(launches, "_GAINS", 1)
    parts = evaluate(student, teacher, upstream, torch.float32, "triton")
    assert torch.equal(whole[1], parts[1])


def test_a_problem_does_not_depend_on_its_batch():
    student, teacher, upstream = logits(3, 5, 90), logits(3, 4, 90), torch.randn(3, 5, 4)
    whole = evaluate(student, teacher, upstream, torch.float32, "triton")
    alone = evaluate(student[1:2], teacher[1:2], upstream[1:2], torch.float32, "triton")
    assert torch.equal(whole[0][1:2], alone[0])
    assert torch.equal(whole[1][1:2], alone[1])


def test_opcheck():
    student, teacher = logits(2, 3, 20).to(DEVICE), logits(2, 2, 20).to(DEVICE)
    arguments = student, teacher, None, None, [1.0, 1.0], 20, True, "triton"
    torch.library.opcheck(ops.l1_cost, arguments)
    cost, statistics = ops.l1_cost(*arguments)
    torch.library.opcheck(ops.l1_cost_backward, (torch.ones_like(cost), statistics, *arguments))
