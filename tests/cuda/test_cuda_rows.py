"""Row divergences of the CUDA backend: every kind, dtype and layout against the truth, and what breaks kernels."""

import math

import pytest
import torch
from row_calls import LAYOUTS, misaligned, rows_of
from support import DEFAULTS, KINDS, each_kind, name

import kd_kernels as kd
from kd_kernels.testing.budget import assert_within_budget
from kd_kernels.testing.inputs import far_pair, near_pair, one_hot_pair
from kd_kernels.testing.truth import eager, truth

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# One of each family of kernels.
COMPILED = [*(kind for kind in DEFAULTS if kind != kd.SkewForwardKL() and kind != kd.SkewReverseKL()), kd.ToDi(2.0)]
# Of each way to a gradient.
SOME = [kd.ReverseKL(), kd.JSD(), kd.TVD(), kd.AKL()]
INF = math.inf

each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype)[6:])
each_compiled = pytest.mark.parametrize("kind", COMPILED, ids=name)
each_layout = pytest.mark.parametrize("blocks", LAYOUTS, ids=str)


def check(actual, student, teacher, kind, size=0.0, **options):
    expected, plain = truth(student, teacher, kind, **options), eager(student, teacher, kind, **options)
    assert_within_budget(actual.losses, expected.losses, plain.losses, "losses")
    assert_within_budget(actual.gradient, expected.gradient, plain.gradient, "gradient", size)
    assert (actual.losses >= 0).all()
    return expected


def equal(a, b):
    return all(map(torch.equal, a, b))


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        pytest.param(kind, dtype, id=f"{name(kind)}-{str(dtype)[6:]}")
        for dtype in DTYPES
        for kind in {torch.bfloat16: KINDS, torch.float32: COMPILED, torch.float16: SOME}[dtype]
    ],
)
def test_within_budget(emulated, kind, dtype):
    """Enough rows for an eager run to show its typical error."""
    for width, rows in ((1000, 24), (7, 96)):
        student, teacher = far_pair(rows, width, dtype)
        check(rows_of(emulated, student, teacher, kind), student, teacher, kind)


@each_compiled
def test_with_temperatures_and_scale(emulated, kind):
    student, teacher = far_pair(16, 333, seed=1)
    actual = rows_of(emulated, student, teacher, kind, temperature=(2.0, 0.7), scale=1.4)
    check(actual, student, teacher, kind, temperature=(2.0, 0.7), scale_t2=True)


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [pytest.param(kind, torch.bfloat16, id=f"{name(kind)}-bfloat16") for kind in COMPILED]
    + [pytest.param(kind, torch.float32, id=f"{name(kind)}-float32") for kind in SOME],
)
def test_layouts_agree(emulated, kind, dtype):
    student, teacher = far_pair(3, 1003, dtype)
    student[2:], teacher[2:] = near_pair(1, 1003, dtype, distance=0.05)
    expected = truth(student, teacher, kind)
    relative = 1e-5 if dtype == torch.float32 else torch.finfo(dtype).eps
    for blocks in LAYOUTS:
        actual = rows_of(emulated, student, teacher, kind, blocks=blocks)
        torch.testing.assert_close(actual.losses.double(), expected.losses, rtol=1e-4, atol=0)
        size = expected.gradient.abs().amax(1, keepdim=True)
        assert ((actual.gradient.double() - expected.gradient).abs() <= relative * size).all()


@pytest.mark.parametrize("width", [32_003, 151_936])
@pytest.mark.parametrize("kind", DEFAULTS, ids=name)
@each_dtype
def test_whole_vocabularies(emulated, dtype, kind, width):
    student, teacher = far_pair(2, width, dtype)
    sides = misaligned(student, 1), misaligned(teacher, 3)
    check(rows_of(emulated, *sides, kind), student, teacher, kind)


def test_devices_without_clusters(emulated):
    student, teacher = far_pair(2, 300)
    old = rows_of(emulated, student, teacher, kd.JSD(), capability=(8, 0))
    assert equal(old, rows_of(emulated, student, teacher, kd.JSD(), blocks=0))


@each_kind
def test_near_convergence(emulated, kind):
    """At a KL of about 5e-7 the loss keeps four digits in float32, where the eager form has none."""
    student, teacher = near_pair(6, 1100)
    expected = truth(student, teacher, kind)
    for blocks in (None, 0):
        actual = rows_of(emulated, student, teacher, kind, blocks=blocks)
        assert (actual.losses >= 0).all()
        assert ((actual.losses.double() - expected.losses).abs() / expected.losses).max() <= 1e-4
        error = (actual.gradient.double() - expected.gradient).abs().max()
        assert error <= 1e-4 * expected.gradient.abs().max()


@each_compiled
def test_equal_inputs_give_exactly_zero(emulated, kind):
    for dtype in DTYPES:
        logits = far_pair(3, 300, dtype)[0]
        result = rows_of(emulated, logits, logits.clone(), kind, temperature=(2.5, 2.5))
        assert (result.losses == 0).all()
        assert (result.gradient == 0).all()


@each_layout
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_rows_may_begin_anywhere(emulated, dtype, blocks):
    """The same bits, wherever within 16 bytes a row of either side or of the gradient begins."""
    student, teacher = far_pair(3, 205, dtype)  # of the contiguous gradients every row begins elsewhere
    per_vector = 16 // student.element_size()
    for kind in (kd.ReverseKL(), kd.JSD(), kd.AKL()):
        expected = rows_of(emulated, student, teacher, kind, blocks=blocks)
        for entries in range(1, per_vector):
            unaligned = misaligned(student, entries), misaligned(teacher, per_vector - entries)
            assert equal(rows_of(emulated, *unaligned, kind, blocks=blocks), expected)


@each_compiled
def test_few_entries(emulated, kind):
    for width in (1, 7, 9, 64):
        student, teacher = far_pair(3, width, torch.bfloat16)
        expected = truth(student, teacher, kind)
        for blocks, entries in ((1, 0), (8, 3), (0, 3)):
            sides = misaligned(student, entries), misaligned(teacher, 2 * entries)
            actual = rows_of(emulated, *sides, kind, blocks=blocks)
            torch.testing.assert_close(actual.losses.double(), expected.losses, rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(actual.gradient.double(), expected.gradient.double(), rtol=1e-2, atol=1e-2)


@each_layout
@pytest.mark.parametrize("kind", SOME, ids=name)
def test_in_place(emulated, kind, blocks):
    student, teacher = far_pair(3, 333, torch.bfloat16)
    expected = rows_of(emulated, student, teacher, kind, blocks=blocks)
    assert equal(rows_of(emulated, student, teacher, kind, gradient=student, blocks=blocks), expected)


@each_compiled
def test_weights_and_upstream_gradients(emulated, kind):
    """A row of weight 0 may hold anything; its loss and gradient are exactly 0, and the others' bits do not change."""
    student, teacher = far_pair(5, 301, torch.bfloat16)
    weight, upstream = torch.tensor([1.0, 0.0, 0.5, 0.0, -2.0]), torch.tensor([1.0, 3.0, 0.25, 1.0, -1.0])
    for blocks in (None, 2, 0):
        plain = rows_of(emulated, student, teacher, kind, blocks=blocks)
        student[1], teacher[1], student[3], teacher[3] = math.nan, INF, -INF, math.nan
        actual = rows_of(
            emulated, student, teacher, kind, blocks=blocks, weight=weight, upstream=upstream,
            normalizer=torch.tensor(4.0),
        )  # fmt: skip
        counts = weight != 0
        assert torch.equal(actual.losses[counts], (plain.losses * weight)[counts])
        assert (actual.losses[~counts] == 0).all()
        assert (actual.gradient[~counts] == 0).all()
        assert (actual.entropy[:, ~counts] == 0).all()
        assert torch.equal(actual.entropy[:, counts], plain.entropy[:, counts])
        factor = (weight * upstream / 4)[:, None]
        torch.testing.assert_close(
            actual.gradient[counts].float(), (plain.gradient * factor)[counts].float(), rtol=1e-2, atol=1e-8
        )
        student, teacher = far_pair(5, 301, torch.bfloat16)


@each_layout
def test_columns_that_count(emulated, blocks):
    """The first of the columns alone, and zero gradients for the rest."""
    for width, columns in ((300, 256), (259, 250), (203, 3)):
        student, teacher = far_pair(3, width, torch.bfloat16)
        actual = rows_of(emulated, student, teacher, kd.JSD(), columns=columns, blocks=blocks)
        first = student[:, :columns].contiguous(), teacher[:, :columns].contiguous()
        expected = rows_of(emulated, *first, kd.JSD(), blocks=blocks)
        assert torch.equal(actual.losses, expected.losses)
        assert torch.equal(actual.gradient[:, :columns], expected.gradient)
        assert (actual.gradient[:, columns:] == 0).all()


def test_values_alone(emulated):
    student, teacher = far_pair(4, 700)
    student[2:], teacher[2:] = near_pair(2, 700)
    for kind in COMPILED:
        kernel = kind.kernel
        both = rows_of(emulated, student, teacher, kind)
        for blocks in (2, 0):
            losses = emulated.row_losses(
                student, teacher, None, None, None, kernel.family, list(kernel.params), [1.0, 1.0], 1.0, 700,
                student[:0], student[:0], blocks=blocks,
            )  # fmt: skip
            torch.testing.assert_close(losses, both.losses, rtol=1e-5, atol=0)


def test_reductions(emulated):
    student, teacher = far_pair(5, 100)
    weight = torch.tensor([1.0, 0.0, 0.5, 2.0, 0.0])
    spec = ("kl", [1.0, 0.0], [1.0, 1.0], 1.0, 100)
    none, gradient, _ = emulated.divergence(student, teacher, weight, None, *spec, "none", True, False)
    for reduction, divisor in (("sum", 1.0), ("mean", 3.0)):
        loss, reduced, entropy = emulated.divergence(student, teacher, weight, None, *spec, reduction, True, True)
        torch.testing.assert_close(loss, none.sum() / divisor)
        torch.testing.assert_close(reduced, gradient / divisor)
        assert entropy.shape == (2, 5)
    backward = emulated.divergence_backward(torch.full((5,), 2.0), student, teacher, weight, *spec)
    torch.testing.assert_close(backward, 2 * gradient)
    assert emulated.divergence(student[:0], teacher[:0], None, None, *spec, "sum", True, True)[0] == 0


@each_layout
def test_entropies(emulated, blocks):
    student, teacher = far_pair(3, 500, torch.bfloat16)
    student[0, 4:] = -INF
    actual = rows_of(emulated, student, teacher, kd.TVD(), temperature=(2.0, 0.5), blocks=blocks).entropy
    for row, logits in zip(actual, (student.double() / 2, teacher.double() / 0.5), strict=True):
        log_p = logits.log_softmax(-1)
        expected = -torch.where(log_p > -INF, log_p.exp() * log_p, 0).sum(-1)
        torch.testing.assert_close(row.double(), expected, rtol=2e-6, atol=0)


@each_compiled
def test_nan_logits_stay_visible(emulated, kind):
    student, teacher = far_pair(6, 300)
    student[1, 5] = teacher[2, 250] = math.nan
    student[3, 7] = INF
    teacher[4] = -INF
    for blocks in (2, 0):
        result = rows_of(emulated, student, teacher, kind, blocks=blocks)
        assert result.losses.isnan().tolist() == [False, True, True, True, True, False]
        assert result.gradient[1:5].isnan().all()
        assert result.gradient[[0, 5]].isfinite().all()


@each_kind
def test_forbidden_entries(emulated, kind):
    """-inf on both sides: as if the entry were not there. On one: +inf where the divergence is, never NaN."""
    student, teacher = far_pair(48, 300)
    student[:, 200:], teacher[:, 200:] = -INF, -INF
    student[44:, 3:], teacher[44:, 3:] = -INF, -INF
    for blocks in (2, 0):
        actual = rows_of(emulated, student, teacher, kind, blocks=blocks)
        check(actual, student, teacher, kind)
        assert (actual.gradient[:, 200:] == 0).all()
    student[:4, 17] = teacher[4:8, 40:44] = -INF
    expected, plain = truth(student, teacher, kind), eager(student, teacher, kind)
    finite = expected.losses.isfinite()
    for blocks in (2, 0):
        actual = rows_of(emulated, student, teacher, kind, blocks=blocks)
        assert torch.equal(actual.losses.isinf(), expected.losses.isinf())
        assert not actual.losses.isnan().any()
        assert not actual.gradient.isnan().any()
        if finite.any():
            assert_within_budget(actual.losses[finite], expected.losses[finite], plain.losses[finite], "losses")
            assert_within_budget(actual.gradient[finite], expected.gradient[finite], plain.gradient[finite], "gradient")


@each_kind
def test_certain_teacher_and_student(emulated, kind):
    """One-hot to fp32: exponentials underflow, ratios are e^height."""
    for height in (20.0, 80.0, 300.0, 5000.0):
        student, teacher = one_hot_pair(4, 33, height=height)
        actual = rows_of(emulated, student, teacher, kind)
        losses = truth(student, teacher, kind).losses
        check(actual, student, teacher, kind, losses[losses.isfinite()].max().item())


@each_compiled
def test_what_one_side_forbids_is_all_but_impossible_for_the_other(emulated, kind):
    """Probabilities about the smallest number of float32, whose products are 0, in rows otherwise near and far."""
    heights = torch.linspace(84, 105, 64)
    for apart in (0.0, 3.0):
        student = torch.stack([torch.zeros_like(heights), heights, heights - 1], 1)
        teacher = torch.stack([torch.full_like(heights, -INF), heights, heights - 1 - apart], 1)
        for pair in ((student, teacher), (teacher, student)):
            result = rows_of(emulated, *pair, kind)
            assert not result.losses.isnan().any()
            assert not result.gradient.isnan().any()


@each_compiled
def test_large_offsets_change_nothing(emulated, kind):
    """Softmax does not feel an offset. Offsets and logits are multiples of 2^-7, so that the sums are exact."""
    student, teacher = ((x * 16).round() / 16 for x in far_pair(8, 300))
    expected = truth(student, teacher, kind)
    for offsets in ((1e4, 0.0), (0.0, -1e4), (-1e4, 1e4)):
        shifted = student + offsets[0], teacher + offsets[1]
        plain, actual = eager(*shifted, kind), rows_of(emulated, *shifted, kind)
        assert_within_budget(actual.losses, expected.losses, plain.losses, "losses")
        assert_within_budget(actual.gradient, expected.gradient, plain.gradient, "gradient")


@each_compiled
def test_late_maximum(emulated, kind):
    """The first vectors of a streamed row say nothing about its top: the sums overflow and it is swept again."""
    student, teacher = far_pair(3, 6000)
    student[:, 5000] += 200
    teacher[0, 5000] += 150
    teacher[1, 5500] += 199
    student[2, :5000] = teacher[2, :5000] = -INF
    for blocks in (2, 0):
        actual = rows_of(emulated, student, teacher, kind, blocks=blocks)
        check(actual, student, teacher, kind, truth(student, teacher, kind).losses.max().item())


@each_compiled
def test_same_bits_in_any_order_and_batch(emulated, kind):
    student, teacher = far_pair(5, 701, torch.bfloat16)
    student[3:], teacher[3:] = near_pair(2, 701, torch.bfloat16, distance=0.05)
    for blocks in (4, 0):
        once = rows_of(emulated, student, teacher, kind, blocks=blocks)
        for seed in (1, 2):
            assert equal(rows_of(emulated, student, teacher, kind, blocks=blocks, seed=seed), once)
        for row in (0, 4):
            one = slice(row, row + 1)
            alone = rows_of(emulated, student[one], teacher[one].clone(), kind, blocks=blocks)
            assert equal(alone, (once.losses[one], once.gradient[one], once.entropy[:, one]))


@pytest.mark.parametrize("mu", [0.0, 0.3, 0.9, 0.999])
def test_ties_of_the_split(emulated, mu):
    """Logits of few values: the head ends among entries of one probability, in the order of their indices."""
    student, teacher = far_pair(8, 500, seed=2)
    teacher = (teacher / 3).round() * 2
    for blocks in (1, 4, 0):
        actual = rows_of(emulated, student, teacher, kd.AKL(mu), blocks=blocks)
        check(actual, student, teacher, kd.AKL(mu))


@each_dtype
def test_scale(emulated, dtype):
    gradient = far_pair(3, 1001, dtype)[0]
    for entries in (0, 1, 3):
        for n in (0, 1, 2, 30, 3003):
            memory = torch.full((entries + n + 5,), 7.0, dtype=dtype)
            part = memory[entries : entries + n]
            part.copy_(gradient.view(-1)[:n])
            for factor in (0.3, 1.0):
                _, (scaled,) = emulated.scale_(part, torch.tensor(factor), written=(0,))
                assert torch.equal(scaled, (part.float() * factor).to(dtype))


def test_families_and_layouts_are_all_here():
    assert {kind.kernel.family for kind in KINDS} == {kind.kernel.family for kind in COMPILED}
