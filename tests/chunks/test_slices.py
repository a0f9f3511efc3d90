"""Divergences of rows that arrive in slices of the vocabulary, against float64 truth and against whole rows."""

import math

import closed_forms
import pytest
import torch
from support import (
    DEFAULTS,
    GPU,
    SLICED,
    each_default,
    each_kind,
    each_kind_and_backend_of,
    few,
    on_device,
)  # fmt: skip

import kd_kernels as kd
from kd_kernels.backends.select import implementation
from kd_kernels.chunks.slices import SlicedRows
from kd_kernels.testing.budget import assert_within_budget
from kd_kernels.testing.inputs import far_pair, near_pair, one_hot_pair
from kd_kernels.testing.truth import Result, eager, evaluate, truth

pytestmark = pytest.mark.usefixtures("nan_in_fresh_memory")
each_backend = pytest.mark.parametrize("backend", SLICED)
each_kind_and_backend = each_kind_and_backend_of(SLICED)
INF = math.inf


def each_dtype(*dtypes):
    return pytest.mark.parametrize("dtype", dtypes, ids=lambda d: str(d)[6:])


def sliced(
    student, teacher, kind, backend, width, *, temperature=(1.0, 1.0), scale=1.0, weight=None, upstream=None,
    normalizer=None, entropy=None, in_place=False,
):  # fmt: skip
    """Losses and gradient by way of slices. `entropy`: a list that takes the entropies."""
    rows = SlicedRows(
        student.shape[0], *kind.kernel, tuple(1 / t for t in temperature), scale, weight, implementation(backend),
        entropy is not None,
        student.dtype, student.device,
    )  # fmt: skip
    student = student.clone()
    slices = list(zip(student.split(width, 1), teacher.split(width, 1), strict=True))
    gradient = student if in_place else torch.full_like(student, math.nan)
    for s, t in slices:
        rows.statistics(s, t)
    rows.normalise()
    while rows.needs_selection:
        for _, t in slices:
            rows.select(t)
    if rows.needs_sums:
        for s, t in slices:
            rows.sums(s, t)
    losses, entropies = rows.finish()
    if entropy is not None:
        entropy.append(entropies)
    for (s, t), out in zip(slices, gradient.split(width, 1), strict=True):
        rows.gradient(s, t, out=out, upstream=upstream, normalizer=normalizer)
    return Result(losses, gradient)


def check(student, teacher, kind, backend, width, *, temperature=(1.0, 1.0), scale=1.0, size=None):
    t2 = temperature[0] * temperature[1]
    options = {"temperature": temperature, "scale_t2": scale == t2 != 1}
    plain = eager(student, teacher, kind, **options)
    if student.dtype == torch.float64:
        losses, gradient = (
            torch.from_numpy(x.astype("float64")) for x in closed_forms.evaluate(kind, student, teacher, **options)
        )
    else:
        losses, gradient = truth(student, teacher, kind, **options)
    inputs = on_device(backend, student, teacher)
    actual = sliced(*inputs, kind, backend, width, temperature=temperature, scale=scale)
    assert_within_budget(actual.losses.cpu(), losses, plain.losses, "losses")
    size = losses[losses.isfinite()].max().item() if size is None else size
    assert_within_budget(actual.gradient.cpu(), gradient, plain.gradient, "gradient", size)
    assert (actual.losses >= 0).all()
    return actual


def widths(backend, columns):
    """One slice, some that do not divide the vocabulary, and where it is cheap enough single columns."""
    if backend == "triton" and not GPU:
        return [columns // 3 + 1]
    return [columns, columns // 3 + 1, columns // 7, *([1] if columns < 300 else [])]


@each_kind_and_backend
@each_dtype(torch.float32, torch.bfloat16, torch.float16, torch.float64)
def test_far(kind, backend, dtype):
    if backend == "triton" and dtype == torch.float64:
        pytest.skip("the backend has no float64")
    student, teacher = far_pair(few(backend, 32, 8), 257, dtype)
    for width in widths(backend, 257):
        check(student, teacher, kind, backend, width, size=0.0)


@each_kind
@each_dtype(torch.float32, torch.bfloat16)
def test_wide(kind, dtype):
    """Slices of several blocks of the kernels."""
    check(*far_pair(4, 30_000, dtype), kind, "cpu", 8192)


@each_kind_and_backend
def test_with_temperatures_and_scale(kind, backend):
    student, teacher = far_pair(few(backend, 32, 8), 257, seed=1)
    check(student, teacher, kind, backend, 100, temperature=(2.0, 0.7), scale=1.4)


@each_kind_and_backend
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_near_convergence(kind, backend, temperature):
    """Losses of about 5e-7 keep four digits, and gradients of 1e-3 as many."""
    student, teacher = near_pair(few(backend, 8, 2), 1000)
    expected = truth(student, teacher, kind, temperature=temperature)
    for width in widths(backend, 1000):
        inputs = on_device(backend, student, teacher)
        actual = sliced(*inputs, kind, backend, width, temperature=(temperature, temperature))
        assert ((actual.losses.cpu().double() - expected.losses).abs() <= 1e-4 * expected.losses).all()
        largest = expected.gradient.abs().amax(-1, keepdim=True)
        assert ((actual.gradient.cpu().double() - expected.gradient).abs() <= 1e-4 * largest).all()


@each_kind
def test_near_convergence_by_single_columns(kind):
    """Where a slice is one entry, all of the divergence is between the slices."""
    student, teacher = near_pair(4, 200)
    expected = truth(student, teacher, kind)
    actual = sliced(student, teacher, kind, "cpu", 1)
    assert ((actual.losses.double() - expected.losses).abs() <= 1e-4 * expected.losses).all()


@each_default
@each_backend
@each_dtype(torch.float32, torch.bfloat16, torch.float16)
def test_equal_inputs_give_exactly_zero(kind, backend, dtype):
    logits = on_device(backend, far_pair(few(backend, 4, 2), 300, dtype)[0])
    for width in widths(backend, 300):
        actual = sliced(logits, logits.clone(), kind, backend, width, temperature=(2.5, 2.5))
        assert (actual.losses == 0).all()
        assert (actual.gradient == 0).all()


@each_kind_and_backend
def test_agrees_with_whole_rows(kind, backend):
    """A mixture of near, far and certain rows, of which the op makes the same numbers."""
    parts = [far_pair(2, 300), near_pair(2, 300), one_hot_pair(2, 300)]
    student, teacher = (on_device(backend, torch.cat(x)) for x in zip(*parts, strict=True))
    whole = evaluate(student, teacher, kind, backend=backend)
    actual = sliced(student, teacher, kind, backend, 128)
    torch.testing.assert_close(actual.losses, whole.losses, rtol=2e-5, atol=1e-12)
    # The gradient subtracts terms of the size of the loss.
    torch.testing.assert_close(actual.gradient, whole.gradient, rtol=1e-4, atol=1e-6 * whole.losses.max().item())


@each_default
@each_backend
def test_a_later_slice_is_higher(kind, backend):
    """By so much that what came before has no mass left, on one side or both."""
    student, teacher = far_pair(4, 300)
    student[:2, 200:] += 250
    teacher[1:3, 200:] += 300
    student[3, 299] += 90
    teacher[3, 150] += 90
    check(student, teacher, kind, backend, 110)


@each_kind_and_backend
@pytest.mark.parametrize("offsets", [(1e4, 0.0), (0.0, -1e4), (1e4, 1e4), (-1e4, 1e4)])
def test_large_offsets_change_nothing(kind, backend, offsets):
    """Softmax does not feel an offset. Offsets and logits are multiples of 2^-7, so that the sums are exact."""
    student, teacher = ((x * 16).round() / 16 for x in far_pair(few(backend, 8, 4), 300))
    shifted = (student + offsets[0], teacher + offsets[1])
    expected, plain = truth(student, teacher, kind), eager(*shifted, kind)
    actual = sliced(*on_device(backend, *shifted), kind, backend, 128)
    assert_within_budget(actual.losses.cpu(), expected.losses, plain.losses, "losses")
    size = expected.losses.max().item()
    assert_within_budget(actual.gradient.cpu(), expected.gradient, plain.gradient, "gradient", size)


@each_default
@each_backend
@pytest.mark.parametrize("height", [20.0, 300.0, 5000.0])
def test_certain_teacher_and_student(kind, backend, height):
    check(*one_hot_pair(4, 33, height=height), kind, backend, 10)


@each_default
@each_backend
@pytest.mark.parametrize("lowest", [-INF, torch.finfo(torch.float32).min])
def test_entries_forbidden_on_both_sides(kind, backend, lowest):
    """Whole slices of them too, at either end."""
    student, teacher = far_pair(4, 300)
    keep = torch.ones(300, dtype=torch.bool)
    keep[:120] = keep[200:] = keep[100] = False
    masked = [torch.where(keep, x, lowest) for x in (student, teacher)]
    actual = check(*masked, kind, backend, 110)
    assert (actual.gradient[:, ~keep] == 0).all()

    student, teacher = near_pair(2, 300)
    masked = [torch.where(keep, x, lowest) for x in (student, teacher)]
    expected = truth(*masked, kind)
    actual = sliced(*on_device(backend, *masked), kind, backend, 110)
    assert ((actual.losses.cpu() - expected.losses).abs() <= 1e-4 * expected.losses).all()


@each_backend
@pytest.mark.parametrize("lowest", [-INF, torch.finfo(torch.float32).min, -1e20, -1e10])
def test_slices_without_mass_at_any_temperature(backend, lowest):
    """Where the offset of the exponentials is rounded up, and where it is rounded down."""
    student, teacher = far_pair(few(backend, 8, 2), 300)
    student[:, :120] = teacher[:, :120] = lowest
    for temperature in (0.1, 0.7, 1.0, 1.1, 1.6):
        check(student, teacher, kd.JSD(), backend, 110, temperature=(temperature, temperature))


@each_default
@each_backend
def test_entries_forbidden_on_one_side(kind, backend):
    """-inf on one side, in whole slices too: +inf where the divergence is infinite, its limit where it is not."""
    student, teacher = far_pair(12, 300)
    student[:4, 17] = -INF
    student[2:4, :128] = -INF
    teacher[4:8, 40:44] = -INF
    teacher[6:8, 192:] = -INF
    expected = truth(student, teacher, kind)
    actual = sliced(*on_device(backend, student, teacher), kind, backend, 110)
    assert torch.equal(actual.losses.cpu().isinf(), expected.losses.isinf())
    assert not actual.losses.isnan().any()
    assert not actual.gradient.isnan().any()
    finite = expected.losses.isfinite()
    plain = eager(student, teacher, kind)
    assert_within_budget(actual.losses.cpu()[finite], expected.losses[finite], plain.losses[finite], "losses")
    assert_within_budget(actual.gradient.cpu()[finite], expected.gradient[finite], plain.gradient[finite], "gradient")
    # What is infinite has a gradient that is huge, of the right sign.
    whole = evaluate(*on_device(backend, student, teacher), kind, backend=backend).gradient[~finite]
    actual_huge = actual.gradient[~finite]
    huge = whole.abs() > 1e20
    assert torch.equal(actual_huge.abs() > 1e20, huge)
    assert torch.equal(actual_huge[huge].sign(), whole[huge].sign())
    torch.testing.assert_close(actual_huge[~huge], whole[~huge], rtol=1e-4, atol=1e-6)


@each_default
@each_backend
def test_rows_without_weight_are_not_read(kind, backend):
    student, teacher = on_device(backend, *far_pair(5, 200))
    weight = on_device(backend, torch.tensor([1.0, 0.0, 0.5, 0.0, 1.0]))
    clean = sliced(student, teacher, kind, backend, 110, weight=weight)
    student[1], teacher[1], student[3], teacher[3] = math.nan, INF, -INF, math.nan
    dirty = sliced(student, teacher, kind, backend, 110, weight=weight)
    assert torch.equal(dirty.losses, clean.losses)
    assert torch.equal(dirty.gradient, clean.gradient)
    assert (dirty.losses[[1, 3]] == 0).all()
    assert (dirty.gradient[[1, 3]] == 0).all()


@each_default
@each_backend
def test_nan_logits_stay_visible(kind, backend):
    """In all of the row's gradient, other slices' included."""
    student, teacher = on_device(backend, *far_pair(5, 200))
    student[1, 5] = math.nan
    teacher[2, 150] = math.nan
    student[3, 190] = INF
    teacher[4] = -INF
    result = sliced(student, teacher, kind, backend, 110)
    assert result.losses.isnan().tolist() == [False, True, True, True, True]
    assert result.gradient[1:].isnan().all()
    assert result.gradient[0].isfinite().all()


@each_default
@each_backend
def test_weight_scale_upstream_and_normalizer(kind, backend):
    student, teacher = on_device(backend, *far_pair(4, 200))
    plain = sliced(student, teacher, kind, backend, 110)
    weight, upstream = on_device(backend, torch.tensor([2.0, 0.25, 1.0, 0.0]), torch.tensor([1.0, -3.0, 0.0, 2.0]))
    normalizer = torch.tensor(8.0, device=student.device)
    actual = sliced(
        student, teacher, kind, backend, 110, weight=weight, scale=0.5, upstream=upstream, normalizer=normalizer
    )
    torch.testing.assert_close(actual.losses, 0.5 * weight * plain.losses)
    factor = 0.5 * weight * upstream / normalizer
    torch.testing.assert_close(actual.gradient, factor[:, None] * plain.gradient)


@each_backend
def test_entropies(backend):
    student, teacher = far_pair(6, 300)
    student[1, 100:] = teacher[2, :200] = -INF
    student[3, 250:] += 300
    entropies = []
    weight = torch.ones(6)
    weight[4] = 0
    sliced(*on_device(backend, student, teacher), kd.JSD(), backend, 110, temperature=(2.0, 0.5),
           weight=on_device(backend, weight), entropy=entropies)  # fmt: skip
    for actual, logits, temperature in zip(entropies[0].cpu(), (student, teacher), (2.0, 0.5), strict=True):
        expected = torch.distributions.Categorical(logits=logits.double() / temperature).entropy()
        torch.testing.assert_close(actual, (expected * weight).float(), rtol=2e-6, atol=1e-6)


@each_default
@each_backend
@each_dtype(torch.float32, torch.bfloat16)
def test_in_place(kind, backend, dtype):
    """The gradient of a slice may take the place of its logits."""
    student, teacher = on_device(backend, *far_pair(3, 200, dtype))
    apart = sliced(student, teacher, kind, backend, 110)
    over = sliced(student, teacher, kind, backend, 110, in_place=True)
    assert torch.equal(apart.gradient, over.gradient)


@each_backend
@pytest.mark.parametrize("kind", DEFAULTS[1:4])
def test_mixed_dtypes(kind, backend):
    student, _ = far_pair(3, 200, torch.bfloat16)
    _, teacher = far_pair(3, 200, torch.float32)
    check(student, teacher, kind, backend, 110)
    check(teacher, student, kind, backend, 110)


@each_default
@each_backend
def test_one_column_and_no_rows(kind, backend):
    student, teacher = on_device(backend, *far_pair(3, 1))
    result = sliced(student, teacher, kind, backend, 1)
    torch.testing.assert_close(result, Result(torch.zeros(3), torch.zeros(3, 1)), atol=1e-6, rtol=0, check_device=False)
    empty = sliced(student[:0], teacher[:0], kind, backend, 1)
    assert empty.losses.shape == (0,)
    assert empty.gradient.shape == (0, 1)


@each_default
@each_backend
def test_same_bits_run_to_run_and_whatever_the_batch(kind, backend):
    student, teacher = on_device(backend, *far_pair(3, 300))
    student[1], teacher[1] = (x[0] for x in on_device(backend, *near_pair(1, 300)))
    once, again = (sliced(student, teacher, kind, backend, 77) for _ in range(2))
    assert torch.equal(once.losses, again.losses)
    assert torch.equal(once.gradient, again.gradient)
    alone = sliced(student[1:2], teacher[1:2], kind, backend, 77)
    assert torch.equal(alone.losses, once.losses[1:2])
    assert torch.equal(alone.gradient, once.gradient[1:2])


@each_backend
@pytest.mark.parametrize("mu", [0.0, 0.3, 0.5, 0.9, 1 - 1e-12])
@each_dtype(torch.float32, torch.bfloat16)
def test_akl_splits_ties_by_index(backend, mu, dtype):
    """Few different logits, and a mass that crosses mu among equal ones, in whatever slice."""
    student, _ = far_pair(8, 200, dtype)
    teacher = torch.randint(-2, 3, (8, 200)).to(dtype)
    teacher[0] = 0
    teacher[1] = -0.0
    teacher[1, ::2] = 0.0
    teacher[2, 150] = 30
    check(student, teacher, kd.AKL(mu), backend, 110)


@each_backend
def test_number_of_passes(backend):
    """A pass over the slices is a projection of both sides."""
    for kind in DEFAULTS:
        student, teacher = on_device(backend, *far_pair(1, 20, torch.bfloat16))
        rows = SlicedRows(
            1, *kind.kernel, (1.0, 1.0), 1.0, None, implementation(backend), False, student.dtype, student.device
        )
        rows.statistics(student, teacher)
        rows.normalise()
        selections = 0
        while rows.needs_selection:
            rows.select(teacher)
            selections += 1
        assert selections == (2 if kind == kd.AKL() else 0)
        assert rows.needs_sums == (kind not in (kd.ForwardKL(), kd.ReverseKL(), kd.Jeffreys()))
