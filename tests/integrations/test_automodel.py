"""NeMo Automodel's loss: against its formula, and against Automodel where it is installed."""

import pytest
import torch
from same import assert_same, kl, leaf

from kd_kernels.integrations.automodel import KDLoss

LABELS = torch.tensor([[4, -100, 7, 1], [-100, 2, 5, -100]])


def batch(dtype=torch.float64):
    return leaf(2, 4, 19, scale=2, dtype=dtype), 2 * torch.randn(2, 4, 19, dtype=dtype)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("count", [None, 11])
def test_formula(temperature, count):
    student, teacher = batch()
    counted = LABELS != -100

    def formula():
        log_q, log_p = ((x[counted] / temperature).log_softmax(-1) for x in (student, teacher))
        return temperature**2 * kl(log_p, log_q).sum() / (count or counted.sum())

    loss = KDLoss(temperature=temperature)
    assert_same(lambda: loss(student, teacher, LABELS, num_batch_labels=count), formula, {"student": student})


@pytest.mark.parametrize("options", [{}, {"temperature": 3.0}, {"chunk_size": 2}, {"fp32_upcast": False}], ids=str)
@pytest.mark.parametrize("count", [None, 11])
def test_the_original(options, count):
    theirs = pytest.importorskip("nemo_automodel.components.loss.kd_loss", exc_type=ImportError).KDLoss
    student, teacher = batch(torch.float32)
    losses = KDLoss(**options), theirs(**options)
    assert_same(*(lambda f=f: f(student, teacher, LABELS, count) for f in losses), {"student": student}, rtol=2e-5)


def test_no_row_counts():
    student, teacher = batch()
    value = KDLoss()(student, teacher, torch.full_like(LABELS, -100))
    value.backward()
    assert value == 0
    assert not student.grad.any()


def test_logits_of_a_part_of_the_vocabulary():
    with pytest.raises(ValueError, match="tp_group must be None"):
        KDLoss(tp_group=object())
    student, teacher = batch()
    sharded = teacher.clone()
    sharded.full_tensor = lambda: teacher
    with pytest.raises(ValueError, match="teacher_logits must not be a DTensor"):
        KDLoss()(student, sharded, LABELS)
