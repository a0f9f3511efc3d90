"""f-DISTILL: step-wise losses on teacher and student samples, and what the paper calls approximations of them."""

import pytest
import torch
from by_hand import BACKENDS, cross_entropy, entropy, kl, softmax, tvd
from hypothesis import given, settings
from hypothesis import strategies as st
from row_problems import COUNTINGS, MASK, SIDES, check, golden, rows

import kd_kernels as kd
from kd_kernels.methods import Samples, engine, f_distill, seqkd

each_backend = pytest.mark.parametrize("backend", BACKENDS)
each_counting = pytest.mark.parametrize("counting", COUNTINGS)


def probabilities(student, teacher, temperature=1.0):
    return softmax(teacher / temperature), softmax(student / temperature)


def half(variant, samples, beta=0.5, temperature=1.0):
    """The loss of rows of one half, with its weight."""

    def formula(student, teacher, labels):
        p, q = probabilities(student, teacher, temperature)
        m = (1 - beta) * p + beta * q
        return {
            ("kl", "teacher"): lambda: kl(p, q),
            ("rkl", "student"): lambda: kl(q, p),
            ("js", "teacher"): lambda: (1 - beta) * kl(p, m),
            ("js", "student"): lambda: beta * kl(q, m),
            ("tvd", "teacher"): lambda: 0.5 * tvd(p, q),
            ("tvd", "student"): lambda: 0.5 * tvd(p, q),
        }[variant, samples]()

    return formula


def called(variant, samples, beta=0.5):
    def method(student, teacher, labels, mask=None, **options):
        given = {f"{samples}_samples": Samples(student, teacher, mask)}
        return f_distill(variant, **given, beta=beta, **options)

    return method


HALVES = [("kl", "teacher"), ("rkl", "student"), ("js", "teacher"), ("js", "student"), ("tvd", "teacher"),
          ("tvd", "student")]  # fmt: skip
each_half = pytest.mark.parametrize(("variant", "samples"), HALVES)


@each_counting
@each_half
def test_halves(variant, samples, counting):
    check(called(variant, samples), half(variant, samples), "logits", counting, "cpu")


@each_backend
@each_half
def test_heads(variant, samples, backend):
    for sides in SIDES:
        check(called(variant, samples, 0.25), half(variant, samples, 0.25), sides, "mask", backend)


@pytest.mark.parametrize("variant", ["js", "tvd"])
def test_whole(variant):
    """Both halves, each of texts of its own."""
    of_teacher, of_student = rows(), rows("heads")
    loss = f_distill(
        variant,
        Samples(of_teacher.student, of_teacher.teacher, MASK),
        Samples(of_student.student, of_student.teacher, labels=of_student.labels),
        beta=0.85,
        temperature=2.0,
    )
    first = half(variant, "teacher", 0.85, 2.0)(*(x[MASK] for x in of_teacher.logits), None).mean()
    second = half(variant, "student", 0.85, 2.0)(*of_student.logits, None).mean()
    expected = first + second
    torch.testing.assert_close(loss, expected)
    leaves = of_teacher.leaves + of_student.leaves
    for a, e in zip(torch.autograd.grad(loss, leaves), torch.autograd.grad(expected, leaves), strict=True):
        torch.testing.assert_close(a, e)


@each_backend
def test_golden(backend):
    one = [0.11276945, [-0.07341719, 0.06330259, -0.01883606, 0.02549966, 0.00345100]]
    other = [0.11089495, [-0.08957385, 0.07979259, -0.01446215, 0.02135352, 0.00288989]]
    tv = [0.45592000, [-0.14943519, 0.16309330, -0.05497414, 0.03639104, 0.00492499]]
    for variant, samples, factor, (value, gradient) in (
        ("js", "teacher", 2, one), ("js", "student", 2, other), ("tvd", "teacher", 2, tv), ("tvd", "student", 2, tv),
        ("kl", "teacher", 1, [0.46399701, [-0.39753365, 0.34600941, -0.05838635, 0.09680893, 0.01310166]]),
        ("rkl", "student", 1, [0.47360511, [-0.32204067, 0.26320325, -0.07994893, 0.12224261, 0.01654374]]),
    ):  # fmt: skip
        method = called(variant, samples)
        golden(lambda s, t, f=factor, m=method: f * m(s, t, None, backend=backend), value, gradient)


def test_both_halves_of_the_same_text_are_the_jsd():
    problem = rows()
    samples = Samples(problem.student, problem.teacher)
    for beta in (0.1, 0.5, 0.85):
        loss = f_distill("js", samples, samples, beta=beta)
        torch.testing.assert_close(loss, kd.divergence(problem.student, problem.teacher, "jsd", beta=1 - beta))


@settings(max_examples=20)
@given(beta=st.floats(0.01, 0.99), temperature=st.floats(0.3, 5.0))
def test_a_student_that_is_its_teacher_loses_nothing(beta, temperature):
    torch.manual_seed(3)
    student = rows().student
    samples = Samples(student, student.detach())
    for variant in ("js", "tvd"):
        loss = f_distill(variant, samples, samples, beta=beta, temperature=temperature)
        assert loss.item() == 0
        assert torch.autograd.grad(loss, student)[0].abs().max() < 1e-12


def test_squared_temperature():
    problem = rows()
    samples = Samples(problem.student, problem.teacher)
    loss = f_distill("js", samples, samples, temperature=(2.0, 3.0), scale_t2=True)
    torch.testing.assert_close(loss, 6 * f_distill("js", samples, samples, temperature=(2.0, 3.0)))


@each_backend
@pytest.mark.parametrize(
    ("counting", "sides"), [*((c, "logits") for c in COUNTINGS), *(("mask", s) for s in SIDES if s != "logits")]
)
def test_engine(counting, sides, backend):
    def formula(student, teacher, labels):
        p, q = probabilities(student, teacher, 1.5)
        return kl(q, p) + entropy(q)

    check(lambda s, t, _, **o: engine(s, t, temperature=1.5, **o), formula, sides, counting, backend)


def test_engine_in_a_part_of_the_vocabulary():
    problem = rows()
    wider = torch.cat([problem.student, problem.student], -1)
    loss = engine(wider, problem.teacher, vocab="common")
    torch.testing.assert_close(loss, engine(problem.student, problem.teacher))


@each_counting
def test_seqkd(counting):
    def formula(student, teacher, labels):
        return cross_entropy(student, labels)

    for sides, backend in (("logits", "cpu"), ("heads", "cpu"), ("heads", "reference")):
        check(lambda s, t, labels, **o: seqkd(s, labels, **o), formula, sides, counting, backend)


def test_seqkd_does_not_count_ignored_labels():
    problem = rows()
    labels = torch.where(MASK, problem.labels, -100)
    expected = cross_entropy(problem.student[MASK], problem.labels[MASK]).mean()
    torch.testing.assert_close(seqkd(problem.student, labels), expected)
    torch.testing.assert_close(seqkd(problem.student, torch.where(MASK, labels, -7), ignore_index=-7), expected)


@pytest.mark.parametrize(
    ("message", "error", "arguments"),
    [
        ("variant must be one of kl, rkl, js, tvd", ValueError, {"variant": "jsd"}),
        ("variant 'js' needs teacher_samples or student_samples", ValueError, {"teacher_samples": None}),
        ("variant 'rkl' needs student_samples$", ValueError, {"variant": "rkl", "teacher_samples": None}),
        ("teacher_samples must be None for variant 'rkl'", ValueError, {"variant": "rkl"}),
        ("student_samples must be Samples", TypeError, {"student_samples": torch.zeros(2, 3)}),
        ("beta must be", ValueError, {"beta": 0.0}),
        ("reduction must be one of mean, sum, none, sequence_mean", ValueError, {"reduction": "batchmean"}),
        ("sequence_mean' needs rows", ValueError, {"reduction": "sequence_mean", "one_row": True}),
        ("beside its own keywords the method takes mask, .* got return_stats", TypeError, {"return_stats": True}),
        ("normalizer divides the sum", ValueError, {"reduction": "sequence_mean", "normalizer": 3}),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_bad_arguments(message, error, arguments):
    problem = rows()
    student, teacher = (x[0, 0] if arguments.pop("one_row", False) else x for x in (problem.student, problem.teacher))
    given = {"variant": "js", "teacher_samples": Samples(student, teacher)} | arguments
    with pytest.raises(error, match=message):
        f_distill(**given)


def test_rows_of_two_halves_are_not_put_together():
    problem = rows()
    samples = Samples(problem.student, problem.teacher)
    with pytest.raises(ValueError, match="reduction='none' is for one half"):
        f_distill("js", samples, samples, reduction="none")


def test_bad_arguments_of_the_approximations():
    problem = rows()
    with pytest.raises(ValueError, match="ids must be below the vocabulary"):
        seqkd(problem.student, problem.labels + 11)
    with pytest.raises(TypeError, match="ids must be integers"):
        seqkd(problem.student, problem.labels.double())
    with pytest.raises(TypeError, match="takes no labels"):
        seqkd(problem.student, problem.labels, labels=problem.labels)
    with pytest.raises(ValueError, match="vocabularies of 11 and 10"):
        engine(problem.student, problem.teacher[..., :10])
    with pytest.raises(TypeError, match="got scale_t2"):
        engine(problem.student, problem.teacher, scale_t2=True)
