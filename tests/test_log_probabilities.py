"""Log-probabilities of given entries and entropies, against log_softmax."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import on_device

import kd_kernels as kd
from kd_kernels.testing.budget import assert_within_budget
from kd_kernels.testing.inputs import far_pair, one_hot_pair

each_backend = pytest.mark.parametrize("backend", ["reference", "cpu"])


def by_hand(logits, ids, temperature=1.0):
    log_q = (logits / temperature).log_softmax(-1)
    return log_q.gather(-1, ids[..., None]).squeeze(-1), -(log_q.exp() * log_q).sum(-1)


def head(rows=(3, 4), vocab=23, hidden=7, dtype=torch.float64, **options):
    tensors = (torch.randn(*rows, hidden), torch.randn(vocab, hidden), torch.randn(vocab))
    return kd.Head(*(x.to(dtype).requires_grad_() for x in tensors), **options)


def leaves(student):
    return [student] if isinstance(student, torch.Tensor) else [student.hidden, student.weight, student.bias]


def gradients(outputs, upstream, student):
    return torch.autograd.grad(outputs, leaves(student), upstream)


@each_backend
@pytest.mark.parametrize("temperature", [1.0, 1.7])
@pytest.mark.parametrize(
    "student",
    [lambda: (2 * torch.randn(3, 4, 23, dtype=torch.float64)).requires_grad_(), head,
     lambda: head(scale=0.5, softcap=3.0)],
    ids=["logits", "head", "capped"],
)  # fmt: skip
def test_formula(backend, temperature, student):
    """Both results, and the gradient of any combination of them, row by row."""
    student = student()
    logits = student if isinstance(student, torch.Tensor) else student.logits()
    ids = torch.randint(23, (3, 4))
    upstream = [torch.randn(3, 4, dtype=torch.float64) for _ in range(2)]
    expected = by_hand(logits, ids, temperature)
    actual = kd.logprobs(student, ids, temperature=temperature, return_entropy=True, backend=backend)
    torch.testing.assert_close(actual, expected, rtol=1e-13, atol=1e-13)
    alone = kd.logprobs(student, ids, temperature=temperature, backend=backend)
    assert torch.equal(alone, actual[0])
    truth = gradients(expected, upstream, student)
    torch.testing.assert_close(gradients(actual, upstream, student), truth, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("backend", "dtype"),
    [("cpu", torch.float32), ("cpu", torch.bfloat16), ("triton", torch.float32)],
    ids=lambda x: str(x).removeprefix("torch."),
)
@pytest.mark.parametrize("pair", [far_pair, one_hot_pair])
def test_accuracy(backend, dtype, pair):
    logits = pair(4, 97, dtype)[0]
    ids = torch.arange(4)  # in one_hot_pair sometimes what the student is certain of
    upstream = [torch.tensor([1.0, -2.0, 0.5, 3.0])] * 2

    def run(f, x):
        leaf = x.detach().clone().requires_grad_()
        values = f(leaf)
        gradient = torch.autograd.grad(values, leaf, [u.to(values[0]) for u in upstream])[0]
        return [*(v.detach().cpu() for v in values), gradient.cpu()]

    truth = run(lambda x: by_hand(x, ids), logits.double())
    eager = run(lambda x: by_hand(x.float(), ids), logits)
    student, at = on_device(backend, logits, ids)
    actual = run(lambda x: kd.logprobs(x, at, return_entropy=True, backend=backend), student)
    assert actual[0].dtype == actual[1].dtype == torch.float32
    for a, t, e, what in zip(actual, truth, eager, ("log-probability", "entropy", "gradient"), strict=True):
        # An entropy is log sum e^z - sum q z, of terms of size log V at least.
        assert_within_budget(a, t, e, what, math.log(97) if what == "entropy" else 0.0)


@each_backend
def test_rows_that_do_not_count(backend):
    """They are not read, give 0 and get no gradient; nor do rows without an entry."""
    mask = torch.tensor([True, False, True, True])
    ids = torch.tensor([3, 5, -100, 0])
    student = torch.randn(4, 9, dtype=torch.float64)
    student[1] = math.nan
    student.requires_grad_()
    values, entropy = kd.logprobs(student, ids, mask=mask, return_entropy=True, backend=backend)
    expected, entropies = by_hand(student[mask], ids[mask].clamp(min=0))
    torch.testing.assert_close(values[[0, 3]], expected[[0, 2]])
    torch.testing.assert_close(entropy[mask], entropies)
    assert values[1] == values[2] == entropy[1] == 0
    (gradient,) = torch.autograd.grad(values.sum(), student)
    assert (gradient[1:3] == 0).all()
    assert gradient.isfinite().all()


@each_backend
def test_vocabulary(backend):
    student = torch.randn(5, 12, dtype=torch.float64, requires_grad=True)
    ids = torch.randint(10, (5,))
    values = kd.logprobs(student, ids, vocab=10, return_entropy=True, backend=backend)
    expected = by_hand(student[:, :10], ids)
    torch.testing.assert_close(values, expected)
    upstream = [torch.randn(5, dtype=torch.float64)] * 2
    torch.testing.assert_close(gradients(values, upstream, student), gradients(expected, upstream, student))


@each_backend
def test_forbidden_entries(backend):
    student = torch.tensor([[0.0, -math.inf, 1.0, -math.inf]], dtype=torch.float64, requires_grad=True)
    values, entropy = kd.logprobs(student, torch.tensor([2]), return_entropy=True, backend=backend)
    q = torch.tensor([0.0, 1.0], dtype=torch.float64).softmax(0)
    torch.testing.assert_close(torch.cat([values, entropy]), torch.stack([q[1].log(), -(q * q.log()).sum()]))
    (gradient,) = torch.autograd.grad(values + entropy, student)
    assert gradient.isfinite().all()
    assert (gradient[0, [1, 3]] == 0).all()


def test_chunks_of_a_head():
    student = head(rows=(40,), dtype=torch.float32)
    ids, upstream = torch.randint(23, (40,)), torch.randn(40)
    expected = by_hand(student.logits(), ids)[0]
    for options in ({"chunk_tokens": 7}, {"memory_budget": 20000}):
        actual = kd.logprobs(student, ids, **options)
        torch.testing.assert_close(actual, expected)
        torch.testing.assert_close(gradients(actual, upstream, student), gradients(expected, upstream, student))
        expected = by_hand(student.logits(), ids)[0]


@settings(max_examples=25)
@given(shift=st.floats(-1e3, 1e3), rows=st.integers(0, 3), vocab=st.integers(1, 40), seed=st.integers(0, 1000))
def test_identities(shift, rows, vocab, seed):
    """Logits are known up to a constant; all entries' probabilities sum to 1 and give the entropy."""
    logits = far_pair(rows, vocab, torch.float64, seed=seed)[0]
    every = [kd.logprobs(logits, torch.full((rows,), v)) for v in range(vocab)]
    log_q = torch.stack(every, -1)
    torch.testing.assert_close(log_q.exp().sum(-1), torch.ones(rows, dtype=torch.float64))
    values, entropy = kd.logprobs(logits + shift, torch.zeros(rows, dtype=torch.int64), return_entropy=True)
    torch.testing.assert_close(values, every[0], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(entropy, -(log_q.exp() * log_q).sum(-1), rtol=1e-9, atol=1e-9)


def test_compiled():
    torch.compiler.reset()
    student, ids = torch.randn(3, 17, requires_grad=True), torch.tensor([1, 0, 16])

    def loss(student):
        values, entropy = kd.logprobs(student, ids, return_entropy=True, backend="cpu")
        return (values * torch.tensor([1.0, 2.0, 3.0])).sum() + entropy.sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(student), loss(student))
    expected = torch.autograd.grad(loss(student), student)
    torch.testing.assert_close(torch.autograd.grad(compiled(student), student), expected)


@pytest.mark.parametrize(
    ("message", "error", "arguments"),
    [
        ("student must be a tensor of logits or a Head", TypeError, {"student": [1.0]}),
        ("ids must be integers", TypeError, {"ids": torch.zeros(2, 3)}),
        (r"ids must have the shape of the rows \[2, 3\]", ValueError, {"ids": torch.zeros(2).long()}),
        ("ids must be below the vocabulary of 5 entries, got 5", ValueError, {"ids": torch.full((2, 3), 5)}),
        ("ids must be below the vocabulary of 4 entries", ValueError, {"ids": torch.full((2, 3), 4), "vocab": 4}),
        ("mask must be bool or integer", TypeError, {"mask": torch.ones(2, 3)}),
        ("temperature must be a number", TypeError, {"temperature": (1.0, 2.0)}),
        ("temperature must be between", ValueError, {"temperature": 0.0}),
        ("vocab must be between 1 and 5", ValueError, {"vocab": 6}),
        ("chunk_tokens must be at least 1", ValueError, {"chunk_tokens": 0}),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_bad_arguments(message, error, arguments):
    given = {"student": torch.zeros(2, 3, 5), "ids": torch.zeros(2, 3, dtype=torch.int64)} | arguments
    with pytest.raises(error, match=message):
        kd.logprobs(**given)
