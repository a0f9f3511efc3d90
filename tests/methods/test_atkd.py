"""ATKD: the target and the others apart, by how sure the teacher is."""

import math

import pytest
import torch
from by_hand import BACKENDS, kl, softmax
from hypothesis import given, settings
from hypothesis import strategies as st
from row_problems import COUNTINGS, MASK, SIDES, check, golden, rows

import kd_kernels as kd
from kd_kernels.methods import atkd

each_backend = pytest.mark.parametrize("backend", BACKENDS)


def parts(student, teacher, labels, temperature=1.0):
    """TKD, DKD and UnC of rows, the others picked out one by one."""
    row = torch.arange(len(labels))
    p, q = softmax(teacher / temperature), softmax(student / temperature)
    p_y, q_y = p[row, labels], q[row, labels]
    tkd = kl(torch.stack([p_y, 1 - p_y], -1), torch.stack([q_y, 1 - q_y], -1))
    others = torch.ones_like(p, dtype=torch.bool)
    others[row, labels] = False
    p_rest, q_rest = (x[others].reshape(len(labels), -1) for x in (p, q))
    dkd = kl(p_rest / p_rest.sum(-1, keepdim=True), q_rest / q_rest.sum(-1, keepdim=True))
    return tkd, dkd, 1 - p_y


def formula(hard_share=0.5, easy_weight=0.2, temperature=1.0):
    def losses(student, teacher, labels):
        tkd, dkd, uncertainty = parts(student, teacher, labels, temperature)
        hard = sorted(range(len(labels)), key=lambda i: -uncertainty[i].item())[: math.ceil(hard_share * len(labels))]
        is_hard = torch.zeros(len(labels), dtype=torch.bool)
        is_hard[hard] = True
        return torch.where(is_hard, (1 - easy_weight) * (tkd + dkd), easy_weight * dkd)

    return losses


def called(**options):
    return lambda *args, **o: atkd(*args, **o, **options)


@pytest.mark.parametrize("counting", COUNTINGS)
def test_defaults(counting):
    for sides in ("logits", "heads"):
        check(called(), formula(), sides, counting, "cpu")


@each_backend
@pytest.mark.parametrize(
    "options", [{"hard_share": 1.0}, {"hard_share": 0.0}, {"easy_weight": 0.7, "temperature": 2.0}], ids=str
)
def test_heads(options, backend):
    for sides in SIDES:
        check(called(chunk_tokens=4, **options), formula(**options), sides, "mask", backend)


@each_backend
def test_golden(backend):
    """TKD + DKD of a hard token."""
    gradient = [-0.46344829, 0.34600941, -0.05737725, 0.15397754, 0.02083859]
    golden(
        lambda s, t: atkd(s, t, torch.tensor([1]), hard_share=1, easy_weight=0, backend=backend), 0.52580361, gradient
    )


@settings(max_examples=20)
@given(seed=st.integers(0, 1000))
def test_the_parts_add_up(seed):
    """KL(p, q) = TKD + UnC DKD."""
    torch.manual_seed(seed)
    problem = rows()
    both = atkd(problem.student, problem.teacher, problem.labels, hard_share=1, easy_weight=0, reduction="none")
    dkd = atkd(problem.student, problem.teacher, problem.labels, hard_share=0, easy_weight=1, reduction="none")
    uncertainty = 1 - problem.teacher.softmax(-1).gather(-1, problem.labels[..., None]).squeeze(-1)
    expected = kd.divergence(problem.student, problem.teacher, reduction="none")
    torch.testing.assert_close(both - dkd + uncertainty * dkd, expected)


def test_a_teacher_that_is_sure():
    """Where the difference of KL and TKD has no digit left. What DKD is does not depend on the target's logit."""
    problem = rows(dtype=torch.float32)
    labels = problem.labels[..., None]
    sure = problem.teacher.scatter(-1, labels, 40.0)
    options = {"hard_share": 0, "easy_weight": 1, "reduction": "none"}
    loss = atkd(problem.student, sure, problem.labels, **options)
    torch.testing.assert_close(loss, atkd(problem.student, problem.teacher, problem.labels, **options))
    (gradient,) = torch.autograd.grad(loss.sum(), problem.student)
    assert (gradient.gather(-1, labels) == 0).all()
    leaf = problem.student.detach().double().requires_grad_()
    _, dkd, _ = parts(leaf.flatten(0, 1), problem.teacher.double().flatten(0, 1), problem.labels.flatten())
    torch.testing.assert_close(gradient.double(), torch.autograd.grad(dkd.sum(), leaf)[0], rtol=1e-5, atol=1e-6)


def test_tokens_without_a_target():
    problem = rows()
    labels = torch.where(MASK, problem.labels, -100)
    labels[0, 0] = -1
    counted = labels >= 0
    expected = formula()(*(x[counted] for x in problem.logits), labels[counted]).mean()
    torch.testing.assert_close(atkd(problem.student, problem.teacher, labels), expected)
    nothing = atkd(problem.student, problem.teacher, torch.full((3, 5), -100))
    assert nothing.item() == 0
    assert (torch.autograd.grad(nothing, problem.student)[0] == 0).all()


def test_equally_sure():
    """Then the first are hard."""
    problem = rows()
    losses = atkd(problem.student, torch.zeros(3, 5, 11).double(), problem.labels, hard_share=0.4, reduction="none")
    tkd, dkd, _ = parts(
        problem.student.flatten(0, 1), torch.zeros(15, 11, dtype=torch.float64), problem.labels.flatten()
    )
    expected = torch.cat([0.8 * (tkd + dkd)[:6], 0.2 * dkd[6:]]).reshape(3, 5)
    torch.testing.assert_close(losses, expected)


def test_vocabularies():
    problem = rows()
    labels = problem.labels % 9
    expected = atkd(problem.student[..., :9], problem.teacher[..., :9], labels)
    torch.testing.assert_close(atkd(problem.student, problem.teacher, labels, vocab=9), expected)


@pytest.mark.parametrize(
    ("message", "error", "options"),
    [
        ("hard_share must be between 0 and 1", ValueError, {"hard_share": 1.5}),
        ("easy_weight must be a number", TypeError, {"easy_weight": None}),
        ("labels must be below the vocabulary of 11", ValueError, {"labels": torch.full((3, 5), 11)}),
        ("labels must have the shape of the rows", ValueError, {"labels": torch.zeros(3).long()}),
        ("labels must be integers", TypeError, {"labels": torch.zeros(3, 5)}),
        ("temperature must be a number", TypeError, {"temperature": (1.0, 1.0)}),
        ("at least 2 entries must count", ValueError, {"vocab": 1}),
        ("got memory_budget", TypeError, {"memory_budget": 1}),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_bad_arguments(message, error, options):
    problem = rows()
    with pytest.raises(error, match=message):
        atkd(problem.student, problem.teacher, **({"labels": problem.labels} | options))
