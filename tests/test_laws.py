"""Laws that every divergence obeys, for any logits: of the maths, and of how the rows of a batch are computed."""

import itertools
import math

import closed_forms
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support import KINDS, name

import kd_kernels as kd
from kd_kernels.testing.budget import assert_within_budget
from kd_kernels.testing.inputs import far_pair, near_pair
from kd_kernels.testing.truth import Result, eager, evaluate

ROWS = 64  # enough for an eager run to show its typical error
DTYPES = [torch.float32, torch.float64]
WIDTHS = st.one_of(st.integers(1, 40), st.integers(41, 300))

each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))


@st.composite
def problems(draw):
    """(kind, V, scale, distance, seed): logits of this scale, the student unrelated or at a distance."""
    kind = draw(st.sampled_from(KINDS))
    width = draw(WIDTHS)
    scale = draw(st.sampled_from([0.1, 1.0, 4.0]))
    distance = draw(st.sampled_from([None, 1.0, 1e-2, 1e-4]))
    return kind, width, scale, distance, draw(st.integers(0, 2**20))


def logits(problem, dtype, rows=ROWS):
    _, width, scale, distance, seed = problem
    if distance is None:
        return far_pair(rows, width, dtype, scale=scale, seed=seed)
    return near_pair(rows, width, dtype, scale=scale, distance=distance, seed=seed)


def rounded(x, step=2.0**-6):
    """Multiples of the step: sums with other multiples are exact."""
    return (x / step).round() * step


def closed_form(student, teacher, kind, temperature=1.0) -> Result:
    """Truth for any dtype."""
    pair = (temperature, temperature)
    return Result(*(torch.from_numpy(x.astype("float64")) for x in closed_forms.evaluate(kind, student, teacher, pair)))


def on_cpu(student, teacher, kind, **options) -> Result:
    return evaluate(student, teacher, kind, backend="cpu", **options)


def check(actual, expected, plain, size):
    """Where V = 1 every loss is 0; what is left there is the rounding of logits of this size."""
    if expected.gradient.shape[1] == 1:
        for x in actual:
            assert (x.abs() <= size * torch.finfo(x.dtype).eps).all()
        return
    assert_within_budget(actual.losses, expected.losses, plain.losses, "losses")
    assert_within_budget(actual.gradient, expected.gradient, plain.gradient, "gradient")


def same_bits(a, b) -> bool:
    return torch.equal(a.losses, b.losses) and torch.equal(a.gradient, b.gradient)


def law(examples=40):
    def decorate(test):
        return each_dtype(settings(max_examples=examples)(given(problem=problems())(test)))

    return decorate


@law(100)
def test_never_negative(problem, dtype):
    result = on_cpu(*logits(problem, dtype), problem[0])
    assert (result.losses >= 0).all()
    assert result.gradient.isfinite().all()


@law(100)
@pytest.mark.parametrize("temperature", [1.0, 0.3])
def test_zero_where_student_is_teacher(problem, dtype, temperature):
    """Value and gradient, whether it is one tensor or two."""
    z = logits(problem, dtype)[0]
    for teacher in (z, z.clone()):
        result = on_cpu(z, teacher, problem[0], temperature=temperature)
        assert (result.losses == 0).all()
        assert (result.gradient == 0).all()


@law()
def test_constants_do_not_matter(problem, dtype):
    """Adding one to all logits of a row, another one on each side: no more than the last bits of those logits do."""
    student, teacher = (rounded(x) for x in logits(problem, dtype))
    shifts = torch.arange(ROWS, dtype=dtype)[:, None] * 8
    shifted = student + shifts, teacher - shifts
    nudged = [x.nextafter(torch.randn_like(x) * math.inf) for x in shifted]
    plain = Result(*(x.to(dtype) for x in closed_form(*nudged, problem[0])))
    check(on_cpu(*shifted, problem[0]), closed_form(student, teacher, problem[0]), plain, shifted[0].abs().max())


@law()
def test_order_of_the_vocabulary_does_not_matter(problem, dtype):
    student, teacher = logits(problem, dtype)
    order = torch.randperm(student.shape[1])
    expected = closed_form(student, teacher, problem[0])
    permuted = student[:, order], teacher[:, order]
    actual = on_cpu(*permuted, problem[0])
    expected = Result(expected.losses, expected.gradient[:, order])
    check(actual, expected, eager(*permuted, problem[0]), student.abs().max())


@law()
def test_rows_know_nothing_of_each_other(problem, dtype):
    """Bit for bit: rows in another order, and each row alone."""
    student, teacher = logits(problem, dtype, 7)
    batch = on_cpu(student, teacher, problem[0])
    order = torch.randperm(7)
    moved = on_cpu(student[order], teacher[order], problem[0])
    assert same_bits(moved, Result(batch.losses[order], batch.gradient[order]))
    for i in range(7):
        alone = on_cpu(student[i : i + 1], teacher[i : i + 1], problem[0])
        assert same_bits(alone, Result(batch.losses[i : i + 1], batch.gradient[i : i + 1]))


@law()
@example(problem=(kd.Jeffreys(), 203, 0.1, None, 231318))  # barely far: q - p of rounded p and q
def test_gradient_rows_sum_to_zero(problem, dtype):
    """As far as an eager gradient's do, and the rounding of h - q sum h, where h has parts q - p and q log(q/p).

    p and q are exponentials over their sum: it and its inverse are rounded, so that each of them adds up to 1 to
    within an eps. The terms h and q sum h are rounded by half an eps; their sizes add up to sum |gradient| +
    2 |sum h| at most, and |sum h| is no larger than the loss, or 1.
    """
    student, teacher = logits(problem, dtype)
    gradient = on_cpu(student, teacher, problem[0]).gradient.double()
    losses, plain = eager(student, teacher, problem[0])
    plain = plain.double()
    sums = gradient.sum(-1).abs()
    rounding = torch.finfo(dtype).eps * (1 + plain.abs().sum(-1).max() + losses.double().abs().max())
    assert sums.max() <= 2 * (plain.sum(-1).abs().max() + rounding)


@law()
@pytest.mark.parametrize("temperature", [4.0, 0.5, (2.0, 0.25)])
def test_temperature_divides_the_logits(problem, dtype, temperature):
    """Bit for bit, as powers of two divide without rounding."""
    student, teacher = logits(problem, dtype)
    t_s, t_t = temperature if isinstance(temperature, tuple) else (temperature, temperature)
    actual = on_cpu(student, teacher, problem[0], temperature=temperature)
    divided = on_cpu(student / t_s, teacher / t_t, problem[0])
    assert same_bits(actual, Result(divided.losses, divided.gradient / t_s))


@law()
def test_any_temperature(problem, dtype):
    student, teacher = logits(problem, dtype)
    actual, plain = (f(student, teacher, problem[0], temperature=1.7) for f in (on_cpu, eager))
    check(actual, closed_form(student, teacher, problem[0], 1.7), plain, student.abs().max())


@law()
@pytest.mark.parametrize("temperature", [2.0, (4.0, 0.5)])
def test_scale_t2_multiplies_by_both_temperatures(problem, dtype, temperature):
    student, teacher = logits(problem, dtype)
    factor = math.prod(temperature) if isinstance(temperature, tuple) else temperature**2
    plain = on_cpu(student, teacher, problem[0], temperature=temperature)
    scaled = on_cpu(student, teacher, problem[0], temperature=temperature, scale_t2=True)
    assert same_bits(scaled, Result(factor * plain.losses, factor * plain.gradient))


@law()
def test_gradients_add_up(problem, dtype):
    """The gradient of the sum holds the gradients of the rows; upstream factors of two multiply them exactly."""
    student, teacher = logits(problem, dtype)
    whole = on_cpu(student, teacher, problem[0])
    upstream = 2.0 ** torch.randint(-3, 4, (ROWS,)).to(dtype)
    leaf = student.clone().requires_grad_()
    losses = kd.divergence(leaf, teacher, problem[0], reduction="none", backend="cpu")
    (gradient,) = torch.autograd.grad(losses, leaf, upstream)
    assert torch.equal(losses.detach(), whole.losses)
    assert torch.equal(gradient, whole.gradient * upstream[:, None])


@law()
@example(problem=(kd.AKL(0.9), 16, 1.0, None, 0))
def test_forbidden_columns_do_not_matter(problem, dtype):
    """Columns at -inf on both sides, appended."""
    student, teacher = logits(problem, dtype)
    width = student.shape[1]
    padded = [torch.nn.functional.pad(x, (0, 1 + width // 3), value=-math.inf) for x in (student, teacher)]
    actual = on_cpu(*padded, problem[0])
    expected, plain = closed_form(student, teacher, problem[0]), eager(student, teacher, problem[0])
    assert (actual.gradient[:, width:] == 0).all()
    check(Result(actual.losses, actual.gradient[:, :width]), expected, plain, student.abs().max())


@each_dtype
@pytest.mark.parametrize("kind", KINDS, ids=name)
def test_moving_towards_the_teacher_lowers_the_loss(kind, dtype):
    """Along the straight line between the logits, whose end is the minimum."""
    student, teacher = far_pair(ROWS, 50, dtype, scale=1.0)
    steps = [on_cpu(teacher + a * (student - teacher), teacher, kind).losses for a in (1.0, 0.5, 0.1, 1e-2, 0.0)]
    for farther, nearer in itertools.pairwise(steps):
        assert (nearer < farther).all()
