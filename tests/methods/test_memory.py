"""No method makes a tensor of the size of the logits beside their gradient; from heads there is none at all.

Tensors inside an op do not show here; those have tests of their own.
"""

import importlib

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import kd_kernels as kd
from kd_kernels.methods import Samples, by_chunk, few_entries

N, V, H = 96, 256, 8
LABELS = torch.arange(N).reshape(4, 24) % V

# Each method with what goes into it, and how many tensors its gradients of logits take: two kernels write one each,
# which are added; what is scattered goes onto zeros. Both are done in place where nobody watches.
METHODS = {
    "f_distill": (lambda s, t: kd.methods.f_distill("js", Samples(s, t)), 1),
    "engine": (kd.methods.engine, 3),
    "seqkd": (lambda s, t: kd.methods.seqkd(s, LABELS), 1),
    "todi": (lambda s, t: kd.methods.todi(s, t, LABELS), 3),
    "gkd": (kd.methods.gkd, 1),
    "distillm": (kd.methods.distillm, 1),
    "distillm2": (lambda s, t: kd.methods.distillm2(Samples(s, t)), 1),
    "detached": (lambda s, t: kd.methods.distillm2(student_samples=Samples(s, t), detached=True), 1),
    "akl": (kd.methods.akl, 1),
    "taid": (lambda s, t: kd.methods.taid(s, t, 0.5), 1),
    "bild": (kd.methods.bild, 2),
    "dpkd": (kd.methods.dpkd, 2),
    "sparse_logit_sampling": (kd.methods.sparse_logit_sampling, 1),
    "kdrl": (lambda s, t: kd.methods.kdrl(s, t, LABELS), 1),
    "atkd": (lambda s, t: kd.methods.atkd(s, t, LABELS), 1),
    "logprobs": (lambda s, t: kd.logprobs(s, LABELS).sum(), 1),
}


class Large(TorchDispatchMode):
    """Counts storages that come into being with as many entries as the logits."""

    def __init__(self):
        super().__init__()
        self.known, self.made = {}, []

    def know(self, *tensors):
        self.known |= {x.untyped_storage().data_ptr(): x for x in tensors}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for x in tree_leaves(result):
            if isinstance(x, torch.Tensor) and x.untyped_storage().nbytes() >= N * V * 4:
                if x.untyped_storage().data_ptr() not in self.known:
                    self.made.append(function)
                self.know(x)  # and keeps it, so that its address stays its own
        return result


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch):
    drawing = importlib.import_module("kd_kernels.methods.sparse_logit_sampling")
    for module, size in (
        (by_chunk, "_ENTRIES"), (few_entries, "_SEARCHED"), (few_entries, "_GATHERED"), (drawing, "_ENTRIES")
    ):  # fmt: skip
        monkeypatch.setattr(module, size, 16 * V)


@pytest.mark.parametrize("method", METHODS)
def test_from_heads(method):
    student = kd.Head(torch.randn(4, 24, H, requires_grad=True), torch.randn(V, H, requires_grad=True))
    teacher = kd.Head(torch.randn(4, 24, H), torch.randn(V, H))
    with Large() as large:
        METHODS[method][0](student, teacher).backward()
    assert not large.made
    assert student.weight.grad is not None


@pytest.mark.parametrize("method", METHODS)
def test_from_logits(method):
    student, teacher = torch.randn(4, 24, V, requires_grad=True), torch.randn(4, 24, V)
    call, tensors = METHODS[method]
    with Large() as large:
        large.know(student, teacher)
        (gradient,) = torch.autograd.grad(call(student, teacher), student)
    assert len(large.made) == tensors, large.made
    assert gradient.shape == student.shape


def test_it_would_show():
    student = torch.randn(4, 24, V, requires_grad=True)
    with Large() as large:
        large.know(student)
        student.softmax(-1).log().sum().backward()
    assert len(large.made) > 2
