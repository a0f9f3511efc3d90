"""What holds for every method: no tensors of the size of the logits, 16-bit input, torch.compile, empty batches."""

import dataclasses
import importlib
import types

import pytest
import torch
from every_method import METHODS, OTHERS
from row_problems import Rows, rows
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import kd_kernels as kd
from kd_kernels.methods import by_chunk, few_entries

N, V, H = 96, 256, 8
each_method = pytest.mark.parametrize("method", METHODS)

# How many tensors gradients of logits take, where it is not one: two kernels write one each, which are added; what is
# scattered goes onto zeros. Both are done in place where nobody watches.
TENSORS = {"engine": 3, "todi": 3, "bild": 2, "dpkd": 2}


def test_no_method_is_left_out():
    functions = {n for n in kd.methods.__all__ if isinstance(getattr(kd.methods, n), types.FunctionType)}
    helpers = {"draw_entries", "kl_estimate", "on_policy"}
    assert functions - helpers - OTHERS == set(METHODS) - {"logprobs", "distillm2_detached"}


class Large(TorchDispatchMode):
    """Counts storages that come into being with as many entries as the logits, outside of ops of this library."""

    def __init__(self, *known):
        super().__init__()
        self.known, self.made = {}, []
        self._know(*known)

    def _know(self, *tensors):
        self.known |= {x.untyped_storage().data_ptr(): x for x in tensors}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for x in tree_leaves(result):
            if isinstance(x, torch.Tensor) and x.untyped_storage().nbytes() >= N * V * 4:
                if x.untyped_storage().data_ptr() not in self.known:
                    self.made.append(function)
                self._know(x)  # and keeps it, so that its address stays its own
        return result


class TestMemory:
    labels = torch.arange(N).reshape(4, 24) % V

    @pytest.fixture(autouse=True)
    def _small_chunks(self, monkeypatch):
        drawing = importlib.import_module("kd_kernels.methods.sparse_logit_sampling")
        for module, size in (
            (by_chunk, "_ENTRIES"), (few_entries, "_SEARCHED"), (few_entries, "_GATHERED"), (drawing, "_ENTRIES")
        ):  # fmt: skip
            monkeypatch.setattr(module, size, 16 * V)

    @each_method
    def test_from_heads(self, method):
        student = kd.Head(torch.randn(4, 24, H, requires_grad=True), torch.randn(V, H, requires_grad=True))
        teacher = kd.Head(torch.randn(4, 24, H), torch.randn(V, H))
        with Large() as large:
            METHODS[method](Rows(student, teacher, self.labels)).backward()
        assert not large.made
        assert student.weight.grad is not None

    @each_method
    def test_from_logits(self, method):
        student, teacher = torch.randn(4, 24, V, requires_grad=True), torch.randn(4, 24, V)
        with Large(student, teacher) as large:
            (gradient,) = torch.autograd.grad(METHODS[method](Rows(student, teacher, self.labels)), student)
        assert len(large.made) == TENSORS.get(method, 1), large.made
        assert gradient.shape == student.shape

    def test_it_would_show(self):
        student = torch.randn(4, 24, V, requires_grad=True)
        with Large(student) as large:
            student.softmax(-1).log().sum().backward()
        assert len(large.made) > 2


def in_dtype(problem: Rows, dtype: torch.dtype) -> Rows:
    """The same numbers as new leaves."""

    def cast(side, leaf):
        if isinstance(side, torch.Tensor):
            return side.detach().to(dtype).requires_grad_(leaf)
        tensors = {name: cast(getattr(side, name), leaf) for name in ("hidden", "weight", "bias")}
        return dataclasses.replace(side, **tensors)

    return Rows(cast(problem.student, True), cast(problem.teacher, False), problem.labels)


@each_method
@pytest.mark.parametrize("sides", ["logits", "heads"])
def test_bfloat16(method, sides):
    """A float32 loss of what was rounded before it came; gradients of the dtype of their tensors."""
    problem = rows(sides, torch.bfloat16)
    exact = in_dtype(problem, torch.float64)
    loss, expected = METHODS[method](problem), METHODS[method](exact)
    assert loss.dtype == torch.float32
    from_heads = sides == "heads"  # whose logits are rounded too
    torch.testing.assert_close(loss.double(), expected, rtol=3e-2 if from_heads else 1e-5, atol=1e-5)
    gradients = torch.autograd.grad(loss, problem.leaves)
    for a, e in zip(gradients, torch.autograd.grad(expected, exact.leaves), strict=True):
        assert a.dtype == torch.bfloat16
        error = (a.double() - e).norm() / e.norm()
        assert error < (0.1 if from_heads else 2**-8)


@each_method
@pytest.mark.parametrize("sides", ["logits", "heads"])
def test_no_rows(method, sides):
    problem = rows(sides)
    cut = [
        x[:, :0] if isinstance(x, torch.Tensor) else dataclasses.replace(x, hidden=x.hidden[:, :0])
        for x in (problem.student, problem.teacher, problem.labels)
    ]
    loss = METHODS[method](Rows(*cut))
    assert loss.item() == 0
    assert all((g == 0).all() for g in torch.autograd.grad(loss, problem.leaves))


@pytest.mark.parametrize(("method", "sides"), [("f_distill", "logits"), ("bild", "heads"), ("kdrl", "logits"),
                                               ("taid", "heads")])  # fmt: skip
def test_compiled(method, sides):
    """As one graph where a method is made of ops, with a break where it goes by chunks."""
    torch.compiler.reset()
    problem = rows(sides, torch.float32)
    loss = METHODS[method]
    compiled = torch.compile(lambda: loss(problem), fullgraph=method != "taid", backend="aot_eager")()
    expected = loss(problem)
    torch.testing.assert_close(compiled, expected)
    for a, e in zip(*(torch.autograd.grad(x, problem.leaves) for x in (compiled, expected)), strict=True):
        torch.testing.assert_close(a, e)
