"""Evaluation: four losses from one projection of a chunk of tokens."""

import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from kd_kernels import Head
from kd_kernels.distillation import models
from kd_kernels.distillation.batches import Batch
from kd_kernels.distillation.evaluation import evaluate
from kd_kernels.distillation.predictions import Form

FORMS = {
    "default": Form(),
    "chunks": Form(chunk_tokens=5),
    "budget": Form(memory_budget=2 * 7 * 2 * 300 * 4),  # 7 tokens of both models
    "tight budget": Form(memory_budget=1),
    "logits": Form(logits=True),
}
LARGEST = {"default": 32, "chunks": 5, "budget": 7, "tight budget": 1}


@pytest.fixture
def pair(student, teacher):
    return [models.load_model(folder, "float32", "cpu") for folder in (student, teacher)]


@pytest.fixture
def blocks():
    blocks = torch.randint(0, 300, (5, 20))
    blocks[2, 4:] = -100
    return blocks


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_means_against_the_formulas_in_float64(pair, blocks, form):
    got = evaluate(*pair, blocks, 3, "cpu", form)
    batch = Batch.of(blocks, "cpu")
    counted = batch.labels != -100
    with torch.no_grad():
        q, p = (F.log_softmax(m(input_ids=batch.input_ids).logits[counted].double(), -1) for m in pair)
    token = batch.labels[counted][:, None]
    assert got == {
        "tokens": len(token),
        "cross_entropy": pytest.approx(-q.gather(1, token).mean().item(), rel=1e-5),
        "teacher_cross_entropy": pytest.approx(-p.gather(1, token).mean().item(), rel=1e-5),
        "forward_kl": pytest.approx((p.exp() * (p - q)).sum(-1).mean().item(), rel=1e-5),
        "reverse_kl": pytest.approx((q.exp() * (q - p)).sum(-1).mean().item(), rel=1e-5),
    }


@pytest.mark.parametrize("form", LARGEST)
def test_each_token_is_projected_once_for_each_model(pair, blocks, form, monkeypatch):
    rows = []
    logits = Head.logits
    monkeypatch.setattr(Head, "logits", lambda head: rows.append(len(head.hidden)) or logits(head))
    evaluate(*pair, blocks, 3, "cpu", FORMS[form])
    assert sum(rows) == 2 * 5 * 19
    assert max(rows) == LARGEST[form]
