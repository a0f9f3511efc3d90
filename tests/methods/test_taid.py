"""TAID: the interpolated teacher, and the schedule of its interpolation."""

import math

import pytest
import torch
from by_hand import BACKENDS, softmax
from hypothesis import given, settings
from hypothesis import strategies as st
from row_problems import COUNTINGS, SIDES, check, golden, rows

import kd_kernels as kd
from kd_kernels.methods import TAIDSchedule, taid

each_backend = pytest.mark.parametrize("backend", BACKENDS)


def formula(t, temperature=1.0):
    def losses(student, teacher, labels):
        target = softmax(((1 - t) * student.detach() + t * teacher) / temperature)
        return -(target * softmax(student / temperature).log()).sum(-1)

    return losses


def called(t, **options):
    return lambda student, teacher, labels, **o: taid(student, teacher, t, **o, **options)


@pytest.mark.parametrize("counting", COUNTINGS)
def test_formula(counting):
    for sides in ("logits", "heads"):
        check(called(0.4), formula(0.4), sides, counting, "cpu")


@each_backend
@pytest.mark.parametrize("options", [{"chunk_tokens": 4}, {"temperature": 2.0}], ids=str)
@pytest.mark.parametrize("t", [0.0, 0.7, 1.0])
def test_heads(t, options, backend):
    expected = formula(t, options.get("temperature", 1.0))
    for sides in SIDES:
        check(called(t, **options), expected, sides, "weights", backend)


@each_backend
def test_golden(backend):
    gradient = [-0.15080648, 0.12930173, -0.03145589, 0.04664758, 0.00631306]
    golden(lambda s, t: taid(s, t, 0.4, backend=backend), 1.29923705, gradient)


@pytest.mark.parametrize("softcap", [None, 2.0])
def test_chunks_add_up(softcap):
    """Weights and biases in bfloat16 get the sum of all chunks, rounded once."""
    hidden, weight, bias = (torch.randn(*shape).bfloat16().requires_grad_() for shape in ((64, 8), (30, 8), (30,)))
    teacher = torch.randn(64, 30)
    gradients = []
    for chunk_tokens in (64, 3):
        loss = taid(kd.Head(hidden, weight, bias, 1.5, softcap), teacher, 0.5, chunk_tokens=chunk_tokens)
        assert loss.dtype == torch.float32
        gradients.append(torch.autograd.grad(loss, (hidden, weight, bias)))
    for whole, parts in zip(*gradients, strict=True):
        assert whole.dtype == torch.bfloat16
        torch.testing.assert_close(parts, whole, rtol=2**-7, atol=2**-8 * whole.abs().max().item())


def test_autocast():
    """Products in bfloat16, gradients of the weight in its own dtype."""
    hidden, weight = torch.randn(20, 8, requires_grad=True), torch.randn(30, 8, requires_grad=True)
    teacher = kd.Head(torch.randn(20, 6), torch.randn(30, 6))
    with torch.autocast("cpu", torch.bfloat16):
        loss = taid(kd.Head(hidden, weight), teacher, 0.5, chunk_tokens=7)
    rounded = kd.Head(hidden.bfloat16(), weight.bfloat16())
    expected = taid(rounded, kd.Head(teacher.hidden.bfloat16(), teacher.weight), 0.5, chunk_tokens=7)
    assert torch.equal(loss, expected)
    gradients = torch.autograd.grad(loss, (hidden, weight))
    for a, e in zip(gradients, torch.autograd.grad(expected, (hidden, weight)), strict=True):
        assert a.dtype == torch.float32
        torch.testing.assert_close(a, e, rtol=2**-7, atol=1e-4)


def test_only_what_is_asked_for():
    """A frozen head, and a student without a gradient."""
    problem = rows("heads")
    head = problem.student
    frozen = kd.Head(head.hidden, head.weight.detach(), None)
    loss = taid(frozen, problem.teacher, 0.5)
    (gradient,) = torch.autograd.grad(loss, head.hidden)
    logits = frozen.logits()
    expected = formula(0.5)(logits.flatten(0, 1), problem.teacher.logits().flatten(0, 1), None).mean()
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, head.hidden)[0])
    constant = kd.Head(head.hidden.detach(), head.weight.detach())
    assert not taid(constant, problem.teacher, 0.5).requires_grad


@pytest.mark.parametrize("t", [0.0, 0.5, 1.0])
def test_forbidden_entries(t):
    problem = rows()
    with torch.no_grad():
        problem.student[..., 2] = -math.inf
        problem.teacher[..., 2] = -math.inf
    loss = taid(problem.student, problem.teacher, t)
    (gradient,) = torch.autograd.grad(loss, problem.student)
    others = [v for v in range(11) if v != 2]
    torch.testing.assert_close(loss, taid(problem.student[..., others], problem.teacher[..., others], t))
    assert gradient.isfinite().all()
    assert (gradient[..., 2] == 0).all()


def test_without_rows_that_count():
    problem = rows("heads")
    loss = taid(problem.student, problem.teacher, 0.5, mask=torch.zeros(3, 5))
    assert loss.item() == 0
    assert all((g == 0).all() for g in torch.autograd.grad(loss, problem.leaves))


def test_vocabularies():
    problem = rows()
    expected = taid(problem.student[..., :9], problem.teacher[..., :9], 0.5)
    torch.testing.assert_close(taid(problem.student, problem.teacher[..., :9], 0.5, vocab="common"), expected)
    torch.testing.assert_close(taid(problem.student, problem.teacher, 0.5, vocab=9), expected)


@settings(max_examples=20)
@given(seed=st.integers(0, 1000))
def test_ends_of_the_interpolation(seed):
    torch.manual_seed(seed)
    problem = rows()
    at_rest = torch.autograd.grad(taid(problem.student, problem.teacher, 0.0), problem.student)[0]
    assert at_rest.abs().max() < 1e-14
    kl = kd.divergence(problem.student, problem.teacher)
    torch.testing.assert_close(
        torch.autograd.grad(taid(problem.student, problem.teacher, 1.0), problem.student),
        torch.autograd.grad(kl, problem.student),
    )


class TestSchedule:
    def test_by_hand(self):
        schedule = TAIDSchedule(steps=1000, alpha=0.1, beta=0.5)
        assert schedule.t == 0.4
        assert schedule.update(2.0, 1) == 0.4  # nothing to compare with
        # D = (2 - 1.5) / 2, m = 0.125
        first = 0.4 + 0.1 / (1 + math.exp(-0.125)) * 0.6
        assert schedule.update(torch.tensor(1.5), 2) == pytest.approx(first)
        # D = (1.5 - 3) / 1.5, m = 0.0625 - 0.5
        second = first + 0.1 / (1 + math.exp(0.4375)) * (1 - first)
        assert schedule.update(3.0, 3) == pytest.approx(second)

    @settings(max_examples=30)
    @given(losses=st.lists(st.floats(0.01, 100), min_size=2, max_size=40))
    def test_between_linear_and_the_end(self, losses):
        schedule = TAIDSchedule(steps=len(losses))
        last = schedule.t
        for step, loss in enumerate(losses, 1):
            t = schedule.update(loss, step)
            assert last <= t <= 1
            assert t >= (0.4 + 0.6 * step / len(losses) if step > 1 else 0.4) - 1e-12
            last = t
        assert t == pytest.approx(1)

    def test_a_falling_loss_is_ahead(self):
        falling, rising = TAIDSchedule(10**6, alpha=0.01), TAIDSchedule(10**6, alpha=0.01)
        for step in range(1, 100):
            falling.update(2 * 0.9**step, step)
            rising.update(2 * 1.1**step, step)
        assert falling.t > rising.t > 0.4

    def test_resumed(self):
        first = TAIDSchedule(100)
        for step in range(1, 40):
            first.update(3 / step, step)
        second = TAIDSchedule(100)
        second.load_state_dict(first.state_dict())
        assert [first.update(3 / s, s) for s in range(40, 60)] == [second.update(3 / s, s) for s in range(40, 60)]

    @pytest.mark.parametrize(
        ("message", "error", "options"),
        [
            ("steps must be at least 1", ValueError, {"steps": 0}),
            ("steps must be an integer", TypeError, {"steps": 1.5}),
            ("start must be between 0 and 1", ValueError, {"start": -0.1}),
            ("end must be between 0.4 and 1", ValueError, {"end": 0.3}),
            ("alpha must be between 0 and 1", ValueError, {"alpha": 2}),
            ("beta must be a number", TypeError, {"beta": None}),
        ],
        ids=lambda x: x if isinstance(x, str) else "",
    )
    def test_bad_arguments(self, message, error, options):
        with pytest.raises(error, match=message):
            TAIDSchedule(**({"steps": 10} | options))


@pytest.mark.parametrize(
    ("message", "error", "options"),
    [
        ("t must be between 0 and 1, got 1.2", ValueError, {"t": 1.2}),
        ("t must be a number", TypeError, {"t": torch.tensor(0.5)}),
        ("temperature must be a number", TypeError, {"temperature": (1.0, 2.0)}),
        ("chunk_tokens must be at least 1", ValueError, {"chunk_tokens": 0}),
        ("the method takes mask, .* got memory_budget", TypeError, {"memory_budget": 10**9}),
        ("vocab must be between 1 and 11", ValueError, {"vocab": 12}),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_bad_arguments(message, error, options):
    problem = rows()
    with pytest.raises(error, match=message):
        taid(problem.student, problem.teacher, **({"t": 0.5} | options))
