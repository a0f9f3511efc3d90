"""ULD: sorted distributions of aligned tokens."""

import math

import pytest
import torch
from by_hand import BACKENDS, gradient, softmax
from hypothesis import given, settings
from hypothesis import strategies as st

import kd_kernels as kd
from kd_kernels.testing.budget import assert_within_budget

each_backend = pytest.mark.parametrize("backend", BACKENDS)


def ragged(dtype=torch.float64):
    """Three sequences of two tokenizers: logits, and masks of answers anywhere."""
    student = (2 * torch.randn(3, 6, 13, dtype=torch.float64)).to(dtype).requires_grad_()
    teacher = (2 * torch.randn(3, 7, 9, dtype=torch.float64)).to(dtype)
    student_mask = torch.tensor([[0, 0, 1, 1, 1, 0], [1, 1, 0, 1, 1, 1], [0, 0, 0, 0, 1, 1]]).bool()
    teacher_mask = torch.tensor([[1, 1, 0, 0, 0, 0, 0], [0, 1, 1, 0, 1, 1, 1], [0, 1, 1, 1, 1, 0, 0]]).bool()
    return student, teacher, student_mask, teacher_mask


def formula(student, teacher, student_mask, teacher_mask, temperature=1.0, top_k=None):
    """Of each sequence, the losses of its tokens."""
    sequences = []
    for b in range(len(student)):
        s, t = student[b][student_mask[b]], teacher[b][teacher_mask[b]]
        n = min(len(s), len(t))
        q, p = (softmax(x[:n] / temperature).sort(-1, descending=True).values for x in (s, t))
        width = max(q.shape[1], p.shape[1])
        q, p = (torch.cat([x, x.new_zeros(n, width - x.shape[1])], 1)[:, :top_k] for x in (q, p))
        sequences.append((q - p).abs().sum(1))
    return sequences


def sequence_mean(sequences):
    return torch.stack([x.mean() for x in sequences if len(x)]).mean()


@each_backend
def test_golden(backend):
    teacher = torch.tensor([[[2.0, 1.0, 0.5, -1.0, -3.0]]], dtype=torch.float64)
    student = torch.tensor([[[0.5, 1.5, -0.5, 0.0, -2.0]]], dtype=torch.float64, requires_grad=True)
    loss = kd.methods.uld(student, teacher, backend=backend)
    assert loss.item() == pytest.approx(0.11985789, abs=1e-8)
    expected = torch.tensor([[[-0.03947317, -0.10729920, 0.13957146, -0.02394169, 0.03114260]]], dtype=torch.float64)
    torch.testing.assert_close(gradient(loss, student), expected, rtol=0, atol=1e-8)


@each_backend
@pytest.mark.parametrize("options", [{}, {"temperature": 1.7}, {"top_k": 4}, {"top_k": 11}], ids=str)
def test_formula(backend, options):
    student, teacher, *masks = ragged()
    sequences = formula(student, teacher, *masks, **options)
    every = torch.cat(sequences)
    for reduction, expected in (
        ("sequence_mean", sequence_mean(sequences)), ("mean", every.mean()), ("sum", every.sum())
    ):  # fmt: skip
        loss = kd.methods.uld(student, teacher, *masks, reduction=reduction, backend=backend, **options)
        torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
        torch.testing.assert_close(gradient(loss, student), gradient(expected, student), rtol=0, atol=1e-12)


@each_backend
def test_losses_of_tokens_stand_with_the_student(backend):
    student, teacher, *masks = ragged()
    losses = kd.methods.uld(student, teacher, *masks, reduction="none", backend=backend)
    expected = torch.zeros(3, 6, dtype=torch.float64)
    for b, sequence in enumerate(formula(student, teacher, *masks)):
        expected[b, masks[0][b].nonzero()[: len(sequence), 0]] = sequence.detach()
    torch.testing.assert_close(losses.detach(), expected, rtol=1e-12, atol=0)


@each_backend
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_accuracy(backend, dtype):
    student, teacher, *masks = ragged(dtype)
    leaf = student.detach().double().requires_grad_()
    truth = sequence_mean(formula(leaf, teacher.double(), *masks))
    eager = sequence_mean(formula(student.float(), teacher.float(), *masks))
    loss = kd.methods.uld(student, teacher, *masks, backend=backend)
    assert loss.dtype == torch.float32
    assert_within_budget(loss.detach(), truth.detach(), eager.detach(), "value")
    assert_within_budget(gradient(loss, student), gradient(truth, leaf), gradient(eager, student), "gradient")


@each_backend
def test_tokens_without_a_partner_are_not_read(backend):
    student, teacher, *masks = ragged()
    expected = kd.methods.uld(student, teacher, *masks, backend=backend)
    by_token = gradient(expected, student)
    with torch.no_grad():
        student[~masks[0]] = math.nan
        teacher[~masks[1]] = math.nan
        student[0, 4] = math.nan  # the third of an answer of which the teacher has two tokens
        teacher[2, 3] = math.nan
    loss = kd.methods.uld(student, teacher, *masks, backend=backend)
    torch.testing.assert_close(loss, expected, rtol=0, atol=0)
    torch.testing.assert_close(gradient(loss, student), by_token, rtol=0, atol=0)


@each_backend
def test_masks(backend):
    """None is all tokens; one mask for both needs no copy of the teacher."""
    student, teacher, mask, _ = ragged()
    every = torch.ones(3, 6, dtype=torch.bool), torch.ones(3, 7, dtype=torch.bool)
    torch.testing.assert_close(
        kd.methods.uld(student, teacher, backend=backend), sequence_mean(formula(student, teacher, *every))
    )
    torch.testing.assert_close(
        kd.methods.uld(student, teacher, mask, backend=backend),
        sequence_mean(formula(student, teacher, mask, every[1])),
    )
    cut = teacher[:, :6]
    expected = sequence_mean(formula(student, cut, mask, mask))
    torch.testing.assert_close(kd.methods.uld(student, cut, mask, mask, backend=backend), expected)
    torch.testing.assert_close(kd.methods.uld(student, cut, mask, mask.clone(), backend=backend), expected)
    other = mask.flip(1)
    expected = sequence_mean(formula(student, cut, mask, other))
    torch.testing.assert_close(kd.methods.uld(student, cut, mask, other, backend=backend), expected)


@each_backend
def test_sequences_without_tokens(backend):
    """They are not counted; where there are no others the loss is 0."""
    student, teacher, *masks = ragged()
    masks[0][0], masks[1][2] = False, False
    loss = kd.methods.uld(student, teacher, *masks, backend=backend)
    torch.testing.assert_close(loss, sequence_mean(formula(student, teacher, *masks)), rtol=1e-12, atol=0)
    for m in masks:
        m[:] = False
    for reduction in ("sequence_mean", "mean", "sum"):
        loss = kd.methods.uld(student, teacher, *masks, reduction=reduction, backend=backend)
        assert loss.item() == 0
        assert (gradient(loss, student) == 0).all()


def test_no_tokens():
    student = torch.zeros(2, 3, 5, requires_grad=True)
    loss = kd.methods.uld(student, torch.zeros(2, 0, 4), backend="reference")
    assert loss.item() == 0
    loss = kd.methods.uld(torch.zeros(0, 3, 5, requires_grad=True), torch.zeros(0, 4, 4), backend="reference")
    assert loss.item() == 0


@settings(max_examples=20)
@given(columns=st.permutations(range(13)), others=st.permutations(range(9)))
def test_entries_have_no_order(columns, others):
    torch.manual_seed(1)
    student, teacher, *masks = ragged()
    loss = kd.methods.uld(student, teacher, *masks, backend="reference")
    same = kd.methods.uld(student[..., columns], teacher[..., others], *masks, backend="reference")
    torch.testing.assert_close(same, loss, rtol=1e-12, atol=0)
    torch.testing.assert_close(gradient(same, student), gradient(loss, student), rtol=0, atol=1e-13)


def test_compiled():
    torch.compiler.reset()
    student, teacher, *masks = ragged(torch.float32)

    def loss(student):
        return kd.methods.uld(student, teacher, *masks, backend="cpu")

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(student), loss(student))
    torch.testing.assert_close(gradient(compiled(student), student), gradient(loss(student), student))


@pytest.mark.parametrize(
    ("message", "error", "options"),
    [
        ("reduction must be one of sequence_mean, mean", ValueError, {"reduction": "batchmean"}),
        ("top_k must be at least 1", ValueError, {"top_k": 0}),
        ("student_mask must be bool or integer", TypeError, {"student_mask": torch.ones(3, 6)}),
        ("teacher_mask must have the shape of the rows", ValueError, {"teacher_mask": torch.ones(3, 6).bool()}),
        ("temperature must be between", ValueError, {"temperature": 0.0}),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_bad_arguments(message, error, options):
    student, teacher, *_ = ragged()
    with pytest.raises(error, match=message):
        kd.methods.uld(student, teacher, backend="reference", **options)


def test_bad_shapes():
    student, teacher, *_ = ragged()
    with pytest.raises(ValueError, match=r"student_logits must have shape \[B, L, V\]"):
        kd.methods.uld(student[0], teacher)
    with pytest.raises(ValueError, match="must have the same batch"):
        kd.methods.uld(student[:1], teacher)
