"""Inputs that break other implementations: forbidden entries, masked rubbish, certainty, huge offsets, odd shapes."""

import math
import mmap

import pytest
import torch
from support import COMPILED, GPU, each_backend, each_default, each_kind_and_backend, few, on_device

import kd_kernels as kd
from kd_kernels.testing.budget import assert_within_budget
from kd_kernels.testing.inputs import far_pair, near_pair, one_hot_pair
from kd_kernels.testing.truth import eager, evaluate, truth

pytestmark = pytest.mark.usefixtures("nan_in_fresh_memory")
INF = math.inf


def check(student, teacher, kind, backend, **options):
    expected = truth(student, teacher, kind, **options)
    plain = eager(student, teacher, kind, **options)
    actual = evaluate(*on_device(backend, student, teacher), kind, backend=backend, **options)
    assert_within_budget(actual.losses.cpu(), expected.losses, plain.losses, "losses")
    size = expected.losses[expected.losses.isfinite()].max().item()
    assert_within_budget(actual.gradient.cpu(), expected.gradient, plain.gradient, "gradient", size)
    return actual


@each_kind_and_backend
@pytest.mark.parametrize("where", ["tail", "scattered", "most"])
def test_entries_forbidden_on_both_sides(kind, backend, where):
    """-inf on both sides: no value, no gradient, as if the entry were not there."""
    student, teacher = far_pair(4, 700)
    keep = torch.ones(700, dtype=torch.bool)
    if where == "tail":
        keep[650:] = False
    elif where == "scattered":
        keep[::7] = False
    else:
        keep[5:] = False
    masked = [torch.where(keep, x, -INF) for x in (student, teacher)]
    actual = check(*masked, kind, backend)
    assert (actual.gradient[:, ~keep] == 0).all()
    compact = evaluate(*on_device(backend, student[:, keep], teacher[:, keep]), kind, backend=backend)
    torch.testing.assert_close(actual.losses, compact.losses, rtol=2e-6, atol=1e-9)


@each_kind_and_backend
def test_entries_forbidden_on_one_side(kind, backend):
    """-inf on one side: +inf where the divergence is infinite, its limit where it is not, never NaN."""
    student, teacher = far_pair(12, 300)
    student[:4, 17] = -INF
    teacher[4:8, 40:44] = -INF
    expected = truth(student, teacher, kind)
    actual = evaluate(*on_device(backend, student, teacher), kind, backend=backend)
    assert torch.equal(actual.losses.cpu().isinf(), expected.losses.isinf())
    assert not actual.losses.isnan().any()
    assert not actual.gradient.isnan().any()
    finite = expected.losses.isfinite()
    plain = eager(student, teacher, kind)
    assert_within_budget(actual.losses.cpu()[finite], expected.losses[finite], plain.losses[finite], "losses")
    assert_within_budget(actual.gradient.cpu()[finite], expected.gradient[finite], plain.gradient[finite], "gradient")


@each_kind_and_backend
@pytest.mark.parametrize("apart", [0.0, 3.0])
def test_what_one_side_forbids_is_all_but_impossible_for_the_other(kind, backend, apart):
    """Probabilities about the smallest number of float32, whose products are 0, in rows otherwise near and far."""
    heights = torch.linspace(84, 105, few(backend, 64, 16))
    student = torch.stack([torch.zeros_like(heights), heights, heights - 1], 1)
    teacher = torch.stack([torch.full_like(heights, -INF), heights, heights - 1 - apart], 1)
    for pair in ((student, teacher), (teacher, student)):
        result = evaluate(*on_device(backend, *pair), kind, backend=backend)
        assert not result.losses.isnan().any()
        assert not result.gradient.isnan().any()


def test_which_divergences_are_infinite():
    """Where the student forbids an entry forward KL is infinite, where the teacher does reverse KL; others never."""
    student, teacher = far_pair(2, 50)
    student[0, 3] = teacher[1, 3] = -INF
    infinite = {kind: kd.divergence(student, teacher, kind, reduction="none").isinf().tolist() for kind in kd.KINDS}
    assert infinite["forward_kl"] == [True, False]
    assert infinite["reverse_kl"] == [False, True]
    assert infinite["jeffreys"] == infinite["todi"] == [True, True]
    for kind in ("jsd", "js_teacher", "js_student", "tvd", "skew_forward_kl", "skew_reverse_kl"):
        assert infinite[kind] == [False, False]


@each_default
@each_backend
def test_masked_rows_are_not_read(kind, backend):
    """A row of weight 0 may hold anything; its loss and gradient are exactly 0, and the others' bits do not change."""
    student, teacher = on_device(backend, *far_pair(5, 300))
    weight = on_device(backend, torch.tensor([1.0, 0.0, 0.5, 0.0, 1.0]))
    clean = evaluate(student, teacher, kind, mask=weight, backend=backend)
    student[1], teacher[1], student[3], teacher[3] = math.nan, INF, -INF, math.nan
    dirty = evaluate(student, teacher, kind, mask=weight, backend=backend)
    assert torch.equal(dirty.losses, clean.losses)
    assert torch.equal(dirty.gradient, clean.gradient)
    assert (dirty.losses[[1, 3]] == 0).all()
    assert (dirty.gradient[[1, 3]] == 0).all()


@pytest.mark.parametrize("backend", ["cpu", "triton", "reference"])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_fully_masked_batch(backend, reduction):
    student, teacher = on_device(backend, *far_pair(3, 40))
    student.fill_(math.nan).requires_grad_()
    loss = kd.divergence(student, teacher, mask=torch.zeros_like(student[:, 0]), reduction=reduction, backend=backend)
    assert loss.requires_grad
    assert (loss == 0).all()
    loss.sum().backward()
    assert (student.grad == 0).all()


@each_default
@pytest.mark.parametrize("backend", ["cpu", "triton"])
def test_nan_logits_stay_visible(kind, backend):
    student, teacher = on_device(backend, *far_pair(3, 300))
    student[1, 5] = math.nan
    teacher[2, 250] = math.nan
    result = evaluate(student, teacher, kind, backend=backend)
    assert result.losses.isnan().tolist() == [False, True, True]
    assert result.gradient[1:].isnan().all()
    assert result.gradient[0].isfinite().all()


@each_kind_and_backend
@pytest.mark.parametrize("height", [20.0, 80.0, 300.0, 5000.0])
def test_certain_teacher_and_student(kind, backend, height):
    """One-hot to fp32: exponentials underflow, ratios are e^height."""
    check(*one_hot_pair(4, 33, height=height), kind, backend)


@each_kind_and_backend
@pytest.mark.parametrize("offsets", [(1e4, 0.0), (0.0, -1e4), (1e4, 1e4), (-1e4, 1e4)])
def test_large_offsets_change_nothing(kind, backend, offsets):
    """Softmax does not feel an offset. Offsets and logits are multiples of 2^-7, so that the sums are exact."""
    student, teacher = ((x * 16).round() / 16 for x in far_pair(few(backend, 8, 4), 500))
    shifted = (student + offsets[0], teacher + offsets[1])
    expected, plain = truth(student, teacher, kind), eager(*shifted, kind)
    actual = evaluate(*on_device(backend, *shifted), kind, backend=backend)
    assert_within_budget(actual.losses.cpu(), expected.losses, plain.losses, "losses")
    assert_within_budget(actual.gradient.cpu(), expected.gradient, plain.gradient, "gradient")


@each_default
@each_backend
def test_late_maximum(kind, backend):
    """The first block of a row says nothing about its top: the sums overflow and the row is swept again."""
    width = few(backend, 6000, 2300)
    student, teacher = far_pair(2, width)
    student[:, width - 1000] += 200
    teacher[0, width - 1000] += 150
    teacher[1, width - 500] += 199
    check(student, teacher, kind, backend)


@each_default
@each_backend
def test_first_block_forbidden(kind, backend):
    student, teacher = far_pair(2, few(backend, 6000, 2300))
    student[:, :-1000] = teacher[:, :-1000] = -INF
    check(student, teacher, kind, backend)


@each_kind_and_backend
def test_one_entry(kind, backend):
    """V = 1: both distributions are the same, whatever the logits."""
    result = evaluate(*on_device(backend, *far_pair(5, 1)), kind, backend=backend)
    assert (result.losses == 0).all()
    assert (result.gradient == 0).all()


@each_default
@pytest.mark.parametrize("backend", ["cpu", "triton", "reference"])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_no_rows(kind, backend, reduction):
    student, teacher = on_device(backend, torch.randn(0, 9), torch.randn(0, 9))
    student.requires_grad_()
    loss = kd.divergence(student, teacher, kind, reduction=reduction, backend=backend)
    assert loss.shape == ((0,) if reduction == "none" else ())
    assert (loss == 0).all()
    loss.sum().backward()
    assert student.grad.shape == (0, 9)


@each_default
@each_backend
def test_strides(kind, backend):
    """Padded rows, rows apart, columns apart, transposed, expanded: the same numbers, and nothing changed."""
    rows = few(backend, 6, 2)
    base = on_device(backend, *far_pair(rows, 130))
    expected = evaluate(*base, kind, backend=backend)

    def padded(x):
        return torch.cat([x, torch.full_like(x, math.nan)], -1)[:, :130]

    def apart(x):
        return torch.stack([x, torch.full_like(x, math.nan)], 1)[:, 0]

    def columns_apart(x):
        return torch.stack([x, torch.full_like(x, math.nan)], -1)[..., 0]

    def transposed(x):
        return x.t().contiguous().t()

    for layout in (padded, apart, columns_apart, transposed):
        student, teacher = map(layout, base)
        before = student.clone(), teacher.clone()
        result = evaluate(student, teacher, kind, backend=backend)
        assert torch.equal(result.losses, expected.losses), layout.__name__
        assert torch.equal(result.gradient, expected.gradient), layout.__name__
        leaf = student.detach().requires_grad_()  # keeps the layout
        kd.divergence(leaf, teacher, kind, reduction="sum", backend=backend).backward()
        assert torch.equal(leaf.grad, expected.gradient), layout.__name__
        assert torch.equal(student, before[0])
        assert torch.equal(teacher, before[1])

    one = base[1][:1].expand(rows, 130)
    assert_close = torch.testing.assert_close
    assert_close(
        evaluate(base[0], one, kind, backend=backend).losses,
        evaluate(base[0], one.contiguous(), kind, backend=backend).losses,
        rtol=0, atol=0,
    )  # fmt: skip


@each_default
@pytest.mark.parametrize("backend", ["cpu", "triton", "reference"])
@pytest.mark.parametrize("lead", [(), (1,), (2, 3), (2, 1, 3)])
def test_leading_dimensions(kind, backend, lead):
    student, teacher = on_device(backend, torch.randn(*lead, 40), torch.randn(*lead, 40))
    student.requires_grad_()
    losses = kd.divergence(student, teacher, kind, reduction="none", backend=backend)
    assert losses.shape == lead
    losses.sum().backward()
    assert student.grad.shape == student.shape
    flat = kd.divergence(
        student.detach().reshape(-1, 40), teacher.reshape(-1, 40), kind, reduction="none", backend=backend
    )
    assert torch.equal(losses.detach().reshape(-1), flat)


@pytest.mark.skipif(
    not GPU, reason="needs 20 GB of logits; the CPU path uses the same 64-bit offsets, tested by stride"
)
@pytest.mark.parametrize("backend", [backend for backend in COMPILED if backend != "cpu"])
def test_more_than_2_to_the_31_entries(backend):
    rows = 2**31 // 151_936 + 2
    student = torch.zeros(rows, 151_936, dtype=torch.bfloat16, device="cuda")
    student[-1].normal_()
    teacher = torch.zeros_like(student)
    losses = kd.divergence(student, teacher, reduction="none", backend=backend)
    assert (losses[:-1] == 0).all()
    alone = kd.divergence(student[-1:], teacher[-1:], reduction="none", backend=backend)
    assert torch.equal(losses[-1:], alone)


@each_backend
@pytest.mark.parametrize(("rows", "stride"), [(2, 2**31 + 4096), (3, 2**30)])
def test_rows_farther_apart_than_2_to_the_31(backend, rows, stride):
    """Row offsets are 64 bits wide, whatever the stride is. The storage is virtual: few of its pages are touched."""
    if backend != "cpu" and GPU:
        pytest.skip("a GPU has no untouched pages; see test_more_than_2_to_the_31_entries")
    storage = torch.frombuffer(mmap.mmap(-1, 2 * rows * stride), dtype=torch.bfloat16)
    wide = storage.as_strided((rows, 64), (stride, 1))
    values, teacher = far_pair(rows, 64, torch.bfloat16)
    wide.copy_(values)
    assert torch.equal(
        kd.divergence(wide, teacher, reduction="none", backend=backend),
        kd.divergence(values, teacher, reduction="none", backend=backend),
    )


@each_default
@each_backend
def test_same_bits_run_to_run_and_whatever_the_batch(kind, backend):
    rows = few(backend, 9, 3)
    student, teacher = on_device(backend, *far_pair(rows, 700))
    student[rows // 2 :], teacher[rows // 2 :] = on_device(backend, *near_pair(rows - rows // 2, 700))
    once = evaluate(student, teacher, kind, backend=backend)
    for _ in range(2):
        again = evaluate(student, teacher, kind, backend=backend)
        assert torch.equal(once.losses, again.losses)
        assert torch.equal(once.gradient, again.gradient)
    for row in {0, rows // 2 + 1, rows - 1}:
        alone = evaluate(student[row : row + 1], teacher[row : row + 1], kind, backend=backend)
        assert torch.equal(alone.losses, once.losses[row : row + 1])
        assert torch.equal(alone.gradient, once.gradient[row : row + 1])
