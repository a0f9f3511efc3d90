"""Every kind, backend and dtype against float64, with the error of an eager run for the budget."""

import itertools

import closed_forms
import pytest
import torch
from support import (
    COMPILED,
    DEFAULTS,
    GPU,
    KINDS,
    SLICED,
    each_kind,
    each_kind_and_backend,
    few,
    name,
    on_device,
    runs,
)  # fmt: skip

import kd_kernels as kd
from kd_kernels.testing.budget import assert_within_budget
from kd_kernels.testing.inputs import far_pair, near_pair
from kd_kernels.testing.truth import eager, evaluate, truth

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
# Widths that are less than a SIMD register, no multiple of anything, one block and a bit, and several blocks.
WIDTHS = [5, 257, 2100]

pytestmark = pytest.mark.usefixtures("nan_in_fresh_memory")


def check(student, teacher, kind, backend, **options):
    plain = eager(student, teacher, kind, **options)
    if student.dtype == torch.float64:
        losses, gradient = (
            torch.from_numpy(x.astype("float64")) for x in closed_forms.evaluate(kind, student, teacher, **options)
        )
    else:
        losses, gradient = truth(student, teacher, kind, **options)
    actual = evaluate(*on_device(backend, student, teacher), kind, backend=backend, **options)
    assert_within_budget(actual.losses.cpu(), losses, plain.losses, "losses")
    assert_within_budget(actual.gradient.cpu(), gradient, plain.gradient, "gradient")
    assert (actual.losses >= 0).all()


def rows(kind, backend, width):
    """Enough for an eager run to show its typical error, as far as the interpreter's speed allows."""
    if width < 10:
        return few(backend, 256, 8 if isinstance(kind, kd.AKL) else 32)
    return few(backend, 32, 8)


def cases(kinds=KINDS):
    """All of kind x dtype x width on the CPU and on a GPU; in the interpreter fewer kinds, and but one
    width other than in float32."""
    for backend, dtype, width, kind in itertools.product(COMPILED, DTYPES, WIDTHS, kinds):
        if backend != "cpu":
            if dtype == torch.float64:
                continue
            widths = WIDTHS if dtype == torch.float32 else [257]
            if not runs(kind, backend) or (not GPU and width not in widths):
                continue
        yield pytest.param(kind, backend, dtype, width, id=f"{name(kind)}-{backend}-{str(dtype)[6:]}-{width}")


@pytest.mark.parametrize(("kind", "backend", "dtype", "width"), list(cases()))
def test_far(kind, backend, dtype, width):
    check(*far_pair(rows(kind, backend, width), width, dtype), kind, backend)


@pytest.mark.parametrize(("kind", "backend", "dtype", "width"), list(cases(DEFAULTS)))
def test_with_temperatures_and_scale(kind, backend, dtype, width):
    check(
        *far_pair(rows(kind, backend, width), width, dtype, seed=1),
        kind,
        backend,
        temperature=(2.0, 0.7),
        scale_t2=True,
    )


@each_kind
@pytest.mark.parametrize("dtype", DTYPES)
def test_whole_vocabulary(kind, dtype):
    check(*far_pair(2, 151_936, dtype), kind, "cpu")


@pytest.mark.skipif(not GPU, reason="the interpreter is too slow for a whole vocabulary")
@each_kind
@pytest.mark.parametrize("backend", [backend for backend in COMPILED if backend != "cpu"])
def test_whole_vocabulary_on_gpu(kind, backend):
    check(*far_pair(8, 151_936, torch.bfloat16), kind, backend)


@each_kind_and_backend
@pytest.mark.parametrize("width", [7, 1100])
def test_near_convergence(kind, backend, width):
    """At a KL of about 5e-7 the loss keeps four digits in float32, where the eager form has none."""
    student, teacher = near_pair(few(backend, 6, 3), width)
    expected = truth(student, teacher, kind)
    assert expected.losses.max() < 1e-3
    actual = evaluate(*on_device(backend, student, teacher), kind, backend=backend)
    relative = (actual.losses.cpu().double() - expected.losses).abs() / expected.losses
    assert (actual.losses >= 0).all()
    assert relative.max() <= 1e-4, f"relative error {relative.max():.1e}"
    scale = expected.gradient.abs().max()
    assert (actual.gradient.cpu().double() - expected.gradient).abs().max() <= 1e-4 * scale


@each_kind_and_backend
@pytest.mark.parametrize("dtype", DTYPES[:3])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_equal_inputs_give_exactly_zero(kind, backend, dtype, temperature):
    logits = on_device(backend, far_pair(few(backend, 4, 2), 300, dtype)[0])
    result = evaluate(logits, logits.clone(), kind, backend=backend, temperature=temperature)
    assert (result.losses == 0).all()
    assert (result.gradient == 0).all()


@pytest.mark.parametrize("backend", SLICED)  # the CUDA kernels take both sides of one dtype
@pytest.mark.parametrize("pair", [(a, b) for a in DTYPES[:3] for b in DTYPES[:3] if a != b], ids=str)
def test_mixed_dtypes(backend, pair):
    """The teacher keeps its own precision, the gradient has the student's."""
    for kind in (kd.ForwardKL(), kd.ReverseKL(), kd.JSD(), kd.AKL()):
        student, _ = far_pair(3, 600, pair[0])
        _, teacher = far_pair(3, 600, pair[1])
        check(student, teacher, kind, backend)


@each_kind
def test_far_and_near_forms_meet(kind):
    """Across the switch between the forms the loss has no step: its difference quotient stays that of the truth."""
    _, teacher = far_pair(1, 500, torch.float32, scale=2.0)
    step = torch.randn_like(teacher)
    sizes = torch.logspace(-1.6, 0.2, 60)
    student = teacher + sizes[:, None] * step
    teacher = teacher.expand_as(student)
    expected = truth(student, teacher, kind).losses
    actual = evaluate(student, teacher, kind, backend="cpu").losses.double()
    assert ((actual - expected).abs() / expected).max() < 1e-4
