"""Model Optimizer's loss of logits: against its formula, and against Model Optimizer where it is installed."""

import pytest
import torch
from same import assert_same, kl, leaf

from kd_kernels.integrations.modelopt import LogitsDistillationLoss

REDUCTIONS = ["mean", "batchmean", "sum", "none"]


def batch(dtype=torch.float64):
    return leaf(2, 4, 19, scale=2, dtype=dtype), 2 * torch.randn(2, 4, 19, dtype=dtype)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_formula(temperature, reduction):
    student, teacher = batch()

    def formula():
        log_q, log_p = ((x / temperature).log_softmax(-1) for x in (student, teacher))
        rows = temperature**2 * kl(log_p, log_q)
        return rows if reduction == "none" else rows.sum() / {"mean": 2 * 4 * 19, "batchmean": 2, "sum": 1}[reduction]

    loss = LogitsDistillationLoss(temperature, reduction)
    assert_same(lambda: loss(student, teacher), formula, {"student": student})


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_the_original(reduction):
    theirs = pytest.importorskip("modelopt.torch.distill.losses", exc_type=ImportError).LogitsDistillationLoss
    student, teacher = batch(torch.float32)
    losses = LogitsDistillationLoss(2.0, reduction), theirs(2.0, reduction)
    assert_same(*(lambda f=f: f(student, teacher) for f in losses), {"student": student}, rtol=2e-5)


def test_an_unknown_reduction():
    with pytest.raises(ValueError, match="reduction must be one of"):
        LogitsDistillationLoss(reduction="median")
