"""torchtune's losses: against their formulas, and against torchtune where it is installed."""

import pytest
import torch
from same import assert_same, kl, leaf

from kd_kernels.integrations import torchtune as ours

CLASSES = [
    "ForwardKLLoss", "ReverseKLLoss", "SymmetricKLLoss", "ForwardKLWithChunkedOutputLoss",
    "ReverseKLWithChunkedOutputLoss", "SymmetricKLWithChunkedOutputLoss",
]  # fmt: skip
each_class = pytest.mark.parametrize("name", CLASSES)
LABELS = torch.tensor([[4, -100, 7, 1, 2], [-100, -100, 5, 6, -100], [1, 2, 3, 4, 5]])
CHUNKS = 3


def options_of(name: str) -> dict:
    options = {"sym_kd_ratio": 0.3} if name.startswith("Symmetric") else {}
    return options | ({"num_output_chunks": CHUNKS} if "Chunked" in name else {})


def batch(dtype=torch.float64):
    return leaf(3, 5, 23, scale=2, dtype=dtype), 2 * torch.randn(3, 5, 23, dtype=dtype)


def arguments(name: str, student, teacher, labels):
    if "Chunked" in name:
        return student.chunk(CHUNKS, dim=1), teacher.chunk(CHUNKS, dim=1), labels
    return student.flatten(0, 1), teacher.flatten(0, 1), labels.flatten()


def formula(name: str, student, teacher, labels):
    """Of the rows that count; the forward KL is a cross-entropy."""
    counted = labels != -100
    log_q, log_p = student.log_softmax(-1)[counted], teacher.log_softmax(-1)[counted]
    forward, reverse = -(log_p.exp() * log_q).sum(-1), kl(log_q, log_p)
    ratio = {"F": 1.0, "R": 0.0, "S": 0.3}[name[0]]
    return ratio * forward + (1 - ratio) * reverse


@pytest.mark.parametrize(
    ("name", "normalize"), [(name, True) for name in CLASSES] + [(name, False) for name in CLASSES[:3]]
)
def test_formula(name, normalize):
    student, teacher = batch()
    loss = getattr(ours, name)(**options_of(name))
    options = {} if normalize else {"normalize": False}
    rows = lambda: formula(name, student, teacher, LABELS)  # noqa: E731
    assert_same(
        lambda: loss(*arguments(name, student, teacher, LABELS), **options),
        lambda: rows().mean() if normalize else rows().sum(),
        {"student": student},
    )


@each_class
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_original(name, dtype):
    theirs = pytest.importorskip("torchtune.modules.loss", exc_type=ImportError)
    student, teacher = batch(dtype)
    losses = [getattr(module, name)(**options_of(name)) for module in (ours, theirs)]
    assert_same(
        *(lambda f=f: f(*arguments(name, student, teacher, LABELS)) for f in losses), {"student": student},
        rtol=1e-5 if dtype == torch.float32 else 1e-2,
    )  # fmt: skip


@each_class
def test_no_row_counts(name):
    student, teacher = batch()
    loss = getattr(ours, name)(ignore_index=7, **options_of(name))
    value = loss(*arguments(name, student, teacher, torch.full_like(LABELS, 7)))
    value.backward()
    assert value == 0
    assert not student.grad.any()


@pytest.mark.parametrize("ratio", [-0.1, 1.1])
@pytest.mark.parametrize("name", ["SymmetricKLLoss", "SymmetricKLWithChunkedOutputLoss"])
def test_ratio(name, ratio):
    with pytest.raises(ValueError, match=r"sym_kd_ratio must be in the range \[0, 1\]"):
        getattr(ours, name)(sym_kd_ratio=ratio)


@pytest.mark.parametrize(("ratio", "name"), [(1.0, "ForwardKLLoss"), (0.0, "ReverseKLLoss")])
def test_ends_of_the_ratio(ratio, name):
    student, teacher = batch()
    losses = ours.SymmetricKLLoss(sym_kd_ratio=ratio), getattr(ours, name)()
    assert_same(*(lambda f=f: f(*arguments(name, student, teacher, LABELS)) for f in losses), {"student": student})


def test_chunks_must_be_as_many_as_those_of_the_labels():
    student, teacher = batch()
    with pytest.raises(ValueError, match="as many chunks as labels have, 3; got 2 and 2"):
        ours.ForwardKLWithChunkedOutputLoss(num_output_chunks=3)(student.chunk(2, 1), teacher.chunk(2, 1), LABELS)
