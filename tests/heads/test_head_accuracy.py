"""Values and gradients of all kinds and pairs of sides, in both plans, against float64 autograd of dense logits."""

import math

import pytest
import torch
from pairs import PAIRS, PLANS, assert_right, evaluate, follow, make
from support import DEFAULTS, each_default, each_kind, name

import kd_kernels as kd

each_pair = pytest.mark.parametrize(("student", "teacher"), PAIRS, ids=["-".join(p) for p in PAIRS])
each_plan = pytest.mark.parametrize("plan", PLANS)
each_dtype = pytest.mark.parametrize(
    "dtype", [torch.bfloat16, torch.float16, torch.float64], ids=lambda x: str(x).removeprefix("torch.")
)

SIZES = {"tokens": 7, "vocabulary": 48}  # neither divides the 61 rows nor the 203 entries


@each_plan
@each_pair
@each_kind
def test_kinds(kind, student, teacher, plan, monkeypatch):
    follow(monkeypatch, plan, SIZES[plan])
    pair = make(student, teacher, temperature=1.5)
    assert_right(pair, kind, temperature=(0.8, 1.5), mask=torch.arange(61) % 3 - 0.5)


@each_plan
@each_pair
@each_dtype
@each_default
def test_dtypes(kind, dtype, student, teacher, plan, monkeypatch):
    follow(monkeypatch, plan, SIZES[plan])
    assert_right(make(student, teacher, dtype), kind)


@each_plan
@pytest.mark.parametrize("softcap", [None, 2.5])
@pytest.mark.parametrize("scale", [1.0, 0.3, 4.0])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=lambda x: str(x).removeprefix("torch."))
@pytest.mark.parametrize("teacher", ["head", "bucket"])
def test_bias_scale_and_softcap(teacher, dtype, bias, scale, softcap, plan, monkeypatch):
    follow(monkeypatch, plan, SIZES[plan])
    pair = make("head", teacher, dtype, bias=bias, scale=scale, softcap=softcap)
    assert_right(pair, "jsd", mask=torch.arange(61) % 3 - 0.5, reduction="none")


@each_plan
@each_pair
@pytest.mark.parametrize("kind", ["reverse_kl", "jsd"])
def test_upstream_gradients_of_rows(kind, student, teacher, plan, monkeypatch):
    follow(monkeypatch, plan, SIZES[plan])
    upstream = torch.linspace(-2, 3, 61)
    upstream[4] = 0
    assert_right(make(student, teacher), kind, reduction="none", upstream=upstream, mask=torch.arange(61) % 4)


@each_plan
@each_pair
@pytest.mark.parametrize("size", [1, 5, 60, 61, 202, 203, 1000])
def test_sizes_of_chunks(size, student, teacher, plan, monkeypatch):
    follow(monkeypatch, plan, size)
    assert_right(make(student, teacher), "todi", normalizer=7.0, reduction="mean")


@each_pair
@each_default
def test_plans_agree(kind, student, teacher, monkeypatch):
    """In float64, to its rounding."""
    pair = make(student, teacher, torch.float64)
    results = []
    for plan in PLANS:
        follow(monkeypatch, plan, SIZES[plan])
        results.append(evaluate(pair, kind))
    for part, value in results[0].items():
        torch.testing.assert_close(results[1][part], value, rtol=1e-9, atol=1e-11)


@each_plan
@each_default
def test_equal_heads_are_at_distance_zero(kind, plan, monkeypatch):
    follow(monkeypatch, plan, SIZES[plan])
    student = make("head", "head").student
    teacher = kd.Head(*(x.detach().clone() for x in (student.hidden, student.weight, student.bias)))
    loss = kd.divergence(student, teacher, kind)
    loss.backward()
    assert loss == 0
    assert not any(x.grad.any() for x in (student.hidden, student.weight, student.bias))


@each_plan
@each_default
def test_near_convergence(kind, plan, monkeypatch):
    """Where the usual formula loses all digits: relative error below 1e-4, never negative."""
    follow(monkeypatch, plan, SIZES[plan])
    teacher = make("head", "head", rows=6, vocab=1000).student
    bias = teacher.bias.detach() + 1e-3 * torch.randn(1000, generator=torch.Generator().manual_seed(1))
    student = kd.Head(teacher.hidden.detach(), teacher.weight.detach(), bias)

    # Both in the dtype of the run: what the logits are is not at issue, but their divergence.
    logits = [(x.hidden @ x.weight.T + x.bias).detach() for x in (student, teacher)]
    losses = kd.divergence(student, teacher, kind, reduction="none").detach()
    truth = kd.divergence(*(x.double() for x in logits), kind, reduction="none")
    assert (losses >= 0).all()
    # The products of a chunk and of the whole need not round alike: a rounding of 1e-6 in differences of 1e-3.
    assert ((losses - truth).abs() / truth).max() < (2e-3 if kind != kd.TVD() else 5e-3)


@pytest.mark.parametrize("teacher", ["bucket", "renormalize", "truncate"])
@each_default
def test_whole_vocabulary_listed(kind, teacher):
    """K = V: every tail is the dense loss."""
    pair = make("head", "logits")
    logprobs = pair.teacher.log_softmax(-1)
    dense = evaluate(pair, kind)
    ids = torch.arange(203).expand(61, 203)
    sparse = evaluate(type(pair)(pair.student, kd.TopK(ids, logprobs, teacher)), kind)
    for part, value in dense.items():
        torch.testing.assert_close(sparse[part], value, rtol=2e-5, atol=2e-5)


class TestCrossEntropy:
    """A teacher that is certain of an entry."""

    @staticmethod
    def one_entry(labels, tail="truncate"):
        return kd.TopK(labels.unsqueeze(-1), torch.zeros(len(labels), 1), tail)

    @pytest.mark.parametrize("tail", ["truncate", "bucket"])
    def test_is_torchs(self, tail):
        pair = make("head", "head")
        labels = torch.arange(61) * 3
        labels[5] = -100
        options = {"labels": labels, "mask": labels != -100}
        actual = evaluate(
            type(pair)(pair.student, self.one_entry(labels, tail)), "forward_kl", reduction="mean", **options
        )
        double = pair.to(torch.float64)
        truth = torch.nn.functional.cross_entropy(double.student.logits(), labels)
        truth.backward()
        torch.testing.assert_close(actual["loss"].double(), truth.detach(), rtol=1e-6, atol=0)
        for part, x in double.leaves.items():
            torch.testing.assert_close(actual[part].double(), x.grad, rtol=1e-4, atol=1e-6)

    def test_renormalised_over_one_entry_is_zero(self):
        pair = make("head", "head")
        result = evaluate(type(pair)(pair.student, self.one_entry(torch.arange(61), "renormalize")), "forward_kl")
        assert not any(x.any() for x in result.values())


@pytest.mark.parametrize("kind", DEFAULTS, ids=name)
@pytest.mark.parametrize("teacher", ["head", "bucket"])
def test_triton(kind, teacher):
    assert_right(make("head", teacher, rows=5, vocab=70), kind, backend="triton", chunk_tokens=2)


@each_plan
@pytest.mark.parametrize("student", ["head", "logits"])
@pytest.mark.parametrize("kind", ["forward_kl", "reverse_kl", "jsd"])
def test_infinite_logits(kind, student, plan, monkeypatch):
    """Entries that a bias of -inf forbids on both sides count for nothing."""
    follow(monkeypatch, plan, SIZES[plan])
    pair = make(student, "head", bias=student == "head")
    forbidden = torch.zeros(203)
    forbidden[50:60] = -math.inf
    teacher = kd.Head(pair.teacher.hidden, pair.teacher.weight, forbidden)
    side = pair.student
    side = side + forbidden if student == "logits" else kd.Head(side.hidden, side.weight, side.bias + forbidden)
    actual = evaluate(type(pair)(pair.student, pair.teacher), kind)
    assert all(x.isfinite().all() for x in actual.values())
    loss = kd.divergence(side, teacher, kind, reduction="sum")
    kept = torch.cat([torch.arange(50), torch.arange(60, 203)])
    student_logits = (side if student == "logits" else side.logits())[:, kept]
    truth = kd.divergence(student_logits.double(), teacher.logits()[:, kept].double(), kind, reduction="sum")
    torch.testing.assert_close(loss.double(), truth, rtol=1e-5, atol=0)
    loss.backward()
    assert all(x.grad.isfinite().all() for x in pair.leaves.values())
