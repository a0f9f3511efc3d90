"""What the tests of one kind share: golden losses and gradients, and derivatives by finite differences.

The golden numbers come from float64 autograd through each method's published formula, written down to eight decimals.
"""

from collections.abc import Callable, Sequence

import pytest
import torch
from support import on_device
from torch import Tensor

from kd_kernels.divergences import Divergence
from kd_kernels.testing.budget import assert_within_budget
from kd_kernels.testing.inputs import far_pair
from kd_kernels.testing.truth import eager, evaluate, truth

STUDENT = [0.5, 1.5, -0.5, 0.0, -2.0]
TEACHER = [2.0, 1.0, 0.5, -1.0, -3.0]

HALF_A_DIGIT = 5e-9  # of eight decimals

# Central differences with this step are off by about its square.
STEP = torch.finfo(torch.float64).eps ** (1 / 3)
DIFFERENCE_ERROR = 100 * STEP**2

each_backend_and_dtype = pytest.mark.parametrize(
    ("backend", "dtype"),
    [("reference", torch.float64), ("cpu", torch.float64), ("cpu", torch.float32), ("triton", torch.float32)],
    ids=lambda x: str(x).removeprefix("torch."),
)


def check_golden(
    kind: Divergence,
    backend: str,
    dtype: torch.dtype,
    loss: float,
    gradient: Sequence[float],
    *,
    student: Sequence[float] = STUDENT,
    teacher: Sequence[float] = TEACHER,
    **options,
) -> None:
    """Loss and gradient of a row of logits: to the last digit in float64, within the budget in float32."""
    expected = torch.tensor(loss, dtype=torch.float64), torch.tensor(gradient, dtype=torch.float64)
    if dtype != torch.float64:
        check_row(kind, backend, *expected, student, teacher, **options)
        return
    z_s, z_t = (torch.tensor([z], dtype=dtype) for z in (student, teacher))
    actual = evaluate(z_s, z_t, kind, backend=backend, **options)
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a[0], e, rtol=torch.finfo(dtype).eps, atol=HALF_A_DIGIT)


def check_row(
    kind: Divergence,
    backend: str,
    loss: Tensor,
    gradient: Tensor,
    student: Sequence[float],
    teacher: Sequence[float],
    **options,
) -> None:
    """One row in float32. One row's eager error is a matter of luck: the budget is that of random rows beside it."""
    z_s, z_t = (torch.tensor([z]) for z in (student, teacher))
    actual = evaluate(*on_device(backend, z_s, z_t), kind, backend=backend, **options)
    batch = [torch.cat([z, x]) for z, x in zip((z_s, z_t), far_pair(63, len(student)), strict=True)]
    expected = truth(*batch, kind, **options)
    expected.losses[0], expected.gradient[0] = loss, gradient
    plain = eager(*batch, kind, **options)
    for a, e, p, what in zip(actual, expected, plain, ("loss", "gradient"), strict=True):
        assert_within_budget(torch.cat([a.cpu(), p[1:]]), e, p, what)


def central_differences(f: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
    """df/dz for z `[V]`; f takes rows `[..., V]` to `[...]`."""
    steps = STEP * torch.eye(z.numel(), dtype=z.dtype)
    return (f(z + steps) - f(z - steps)) / (2 * STEP)


def check_differences(kind: Divergence, **options) -> None:
    """The gradient of backend 'cpu' in float64 is the derivative of its own value."""
    student, teacher = (x[0] for x in far_pair(1, 9, torch.float64, scale=1.5))

    def loss(z):
        return evaluate(z, teacher.expand_as(z).contiguous(), kind, backend="cpu", **options).losses

    gradient = evaluate(student[None], teacher[None], kind, backend="cpu", **options).gradient[0]
    torch.testing.assert_close(gradient, central_differences(loss, student), rtol=0, atol=DIFFERENCE_ERROR)


def distributions(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """p and q."""
    return (teacher / temperature).softmax(-1), (student / temperature).softmax(-1)
