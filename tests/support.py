"""What the test modules share."""

import pytest
import torch

import kd_kernels as kd
from kd_kernels.backends import select
from kd_kernels.divergences import Divergence

GPU = torch.cuda.is_available()

# Each kind at its default and at parameters that take other paths.
KINDS: list[Divergence] = [
    kd.ForwardKL(), kd.ReverseKL(), kd.Jeffreys(), kd.JSD(), kd.JSD(0.1), kd.JSD(0.9), kd.JSTeacher(),
    kd.JSTeacher(0.15), kd.JSStudent(), kd.JSStudent(0.85), kd.TVD(), kd.SkewForwardKL(), kd.SkewReverseKL(),
    kd.SkewReverseKL(0.5), kd.ToDi(), kd.ToDi(2.0), kd.ToDi(0.0), kd.AKL(), kd.AKL(0.9), kd.AKL(0.0),
]  # fmt: skip
DEFAULTS = [cls() for cls in kd.KINDS.values()]
# Backends that have slices of rows; and with them those that have whole rows, of which one needs a GPU.
SLICED = ["cpu", "triton"]
COMPILED = [*SLICED, *["cuda"] * (GPU and select.unavailable("cuda") is None)]

# The interpreter is slow: it runs what is compiled to code of its own, on fewer rows.
INTERPRETED = [*DEFAULTS, kd.ToDi(2.0)]


def name(kind: Divergence) -> str:
    return repr(kind).replace("()", "")


def runs(kind: Divergence, backend: str) -> bool:
    return GPU or backend != "triton" or kind in INTERPRETED


def few(backend: str, rows: int, fewer: int) -> int:
    """The number of rows, or of entries in a row, where the interpreter has to go through them."""
    return fewer if backend == "triton" and not GPU else rows


def on_device(backend: str, *tensors):
    """The tensors where the backend runs."""
    device = "cuda" if backend in ("triton", "cuda") and GPU else "cpu"
    moved = tuple(x.to(device) for x in tensors)
    return moved if len(moved) > 1 else moved[0]


each_kind = pytest.mark.parametrize("kind", KINDS, ids=name)
each_default = pytest.mark.parametrize("kind", DEFAULTS, ids=name)


def each_kind_and_backend_of(backends: list[str]) -> pytest.MarkDecorator:
    pairs = [pytest.param(k, b, id=f"{name(k)}-{b}") for k in KINDS for b in backends if runs(k, b)]
    return pytest.mark.parametrize(("kind", "backend"), pairs)


each_kind_and_backend = each_kind_and_backend_of(COMPILED)
each_backend = pytest.mark.parametrize("backend", COMPILED)
