"""DistiLLM's skewed KLs, and the pair of DistiLLM-2."""

import pytest
import torch
from by_hand import BACKENDS, kl, softmax
from hypothesis import given, settings
from hypothesis import strategies as st
from row_problems import COUNTINGS, MASK, SIDES, check, golden, reduced, rows

import kd_kernels as kd
from kd_kernels.methods import Samples, distillm, distillm2

each_backend = pytest.mark.parametrize("backend", BACKENDS)


def formula(variant, alpha=0.1, temperature=1.0, detached=False):
    def losses(student, teacher, labels):
        p, q = softmax(teacher / temperature), softmax(student / temperature)
        if variant == "skl":
            return kl(p, alpha * p + (1 - alpha) * q)
        return kl(q, (1 - alpha) * p + alpha * (q.detach() if detached else q))

    return losses


def called(variant, **options):
    return lambda student, teacher, labels, **o: distillm(student, teacher, variant, **o, **options)


def second(**options):
    """DistiLLM-2's half on student samples."""

    def method(student, teacher, labels, mask=None, reduction="mean", **o):
        return distillm2(student_samples=Samples(student, teacher, mask), reduction=reduction, **o, **options)

    return method


@pytest.mark.parametrize("counting", COUNTINGS)
@pytest.mark.parametrize("variant", ["skl", "srkl"])
def test_distillm(variant, counting):
    check(called(variant), formula(variant), "logits", counting, "cpu")


@each_backend
@pytest.mark.parametrize("variant", ["skl", "srkl"])
@pytest.mark.parametrize("options", [{}, {"alpha": 0.0}, {"alpha": 0.9, "temperature": 2.0}], ids=str)
def test_heads(variant, options, backend):
    for sides in SIDES:
        check(called(variant, **options), formula(variant, **options), sides, "mask", backend)


@each_backend
@pytest.mark.parametrize("counting", COUNTINGS)
@pytest.mark.parametrize("alpha", [0.1, 0.0], ids=str)
def test_detached_mixture(alpha, counting, backend):
    for sides in ("logits", "heads"):
        expected = formula("srkl", alpha, detached=True)
        check(second(alpha=alpha, detached=True), expected, sides, counting, backend)


@each_backend
def test_golden(backend):
    def of(variant):
        return lambda s, t: distillm(s, t, variant, backend=backend)

    def detached(s, t):
        return distillm2(student_samples=Samples(s, t), detached=True, reduction="sum", backend=backend)

    golden(of("skl"), 0.36533606, [-0.28742541, 0.25275632, -0.05013925, 0.07469894, 0.01010940])
    golden(of("srkl"), 0.36909207, [-0.25518306, 0.21970791, -0.05891289, 0.08313671, 0.01125133])
    golden(detached, 0.36909207, [-0.28596540, 0.24068637, -0.06850131, 0.10021739, 0.01356295])


@pytest.mark.parametrize("detached", [False, True])
@pytest.mark.parametrize("options", [{}, {"beta": 1.5, "alpha": 0.3, "temperature": 1.5}], ids=str)
def test_distillm2(options, detached):
    """The pair: each of its own texts, which count alike however long they are."""
    by_teacher, by_student = rows(), rows("heads")
    of_student = torch.ones(3, 5).bool()
    of_student[1, 2:] = False
    loss = distillm2(
        Samples(by_teacher.student, by_teacher.teacher, MASK),
        Samples(by_student.student, by_student.teacher, of_student),
        detached=detached,
        **options,
    )
    beta = options.get("beta", 1.0)
    rest = {"alpha": options.get("alpha", 0.1), "temperature": options.get("temperature", 1.0)}
    expected = (2 - beta) * reduced(
        formula("skl", **rest)(*(x[MASK] for x in by_teacher.logits), None),
        {"mask": MASK, "reduction": "sequence_mean"},
    ) + beta * reduced(
        formula("srkl", **rest, detached=detached)(*(x[of_student] for x in by_student.logits), None),
        {"mask": of_student, "reduction": "sequence_mean"},
    )
    torch.testing.assert_close(loss, expected)
    leaves = by_teacher.leaves + by_student.leaves
    for a, e in zip(torch.autograd.grad(loss, leaves), torch.autograd.grad(expected, leaves), strict=True):
        torch.testing.assert_close(a, e)


def test_detached_mixture_of_a_sparse_teacher():
    problem = rows()
    logprobs, ids = problem.teacher.log_softmax(-1).topk(11)
    losses = [
        distillm2(student_samples=Samples(problem.student, teacher), detached=True)
        for teacher in (problem.teacher, kd.TopK(ids, logprobs))
    ]
    torch.testing.assert_close(*losses)
    torch.testing.assert_close(*(torch.autograd.grad(loss, problem.student)[0] for loss in losses))


@settings(max_examples=20)
@given(alpha=st.floats(0.0, 0.99), beta=st.floats(0.0, 2.0))
def test_a_student_that_is_its_teacher_loses_nothing(alpha, beta):
    torch.manual_seed(4)
    student = rows().student
    samples = Samples(student, student.detach())
    loss = distillm2(samples, samples, alpha=alpha, beta=beta)
    assert loss.item() == 0
    assert torch.autograd.grad(loss, student)[0].abs().max() < 1e-12


@pytest.mark.parametrize(
    ("message", "error", "options"),
    [
        ("needs teacher_samples, student_samples, or both", ValueError, {"teacher_samples": None}),
        ("teacher_samples must be Samples", TypeError, {"teacher_samples": 1}),
        ("beta must be between 0 and 2, got 3", ValueError, {"beta": 3}),
        ("alpha must be", ValueError, {"alpha": 1.0}),
        ("detached must be True or False", TypeError, {"detached": 1}),
        ("got labels_", TypeError, {"labels_": None}),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_bad_arguments(message, error, options):
    problem = rows()
    with pytest.raises(error, match=message):
        distillm2(**({"teacher_samples": Samples(problem.student, problem.teacher)} | options))


def test_bad_arguments_of_distillm():
    problem = rows()
    with pytest.raises(ValueError, match="variant must be one of skl, srkl"):
        distillm(problem.student, problem.teacher, "jsd")
    samples = Samples(problem.student, problem.teacher)
    with pytest.raises(ValueError, match="reduction='none' is for one half"):
        distillm2(samples, samples, reduction="none")
