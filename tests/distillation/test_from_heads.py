"""Losses from hidden states and LM heads, the default, and from logits."""

import pytest
import torch
from tiny import metrics, save_model
from transformers import GraniteConfig, GraniteForCausalLM

import kd_kernels
from kd_kernels import Head, TopK
from kd_kernels.distillation import models
from kd_kernels.distillation.batches import Batch
from kd_kernels.distillation.predictions import Form, summed_cross_entropy


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"kind": "jsd", "temperature": 2.0, "scale_t2": True, "chunk_tokens": 3},
        {"kind": "reverse_kl", "ce_weight": 0.5, "accumulate": 2},
        {"kind": "akl", "backend": "reference"},
    ],
    ids=["plain", "jsd", "cross-entropy", "reference"],
)
def test_a_run_from_heads_is_the_run_from_logits(run, tmp_path, changes):
    assert run(**changes, out=tmp_path / "heads") == 0
    changes = changes | {"chunk_tokens": None}
    assert run(**changes, out=tmp_path / "logits", logits=True) == 0
    for a, b in zip(metrics(tmp_path / "heads"), metrics(tmp_path / "logits"), strict=True):
        assert a.get("eval", a) == pytest.approx(b.get("eval", b), rel=1e-3)


def test_bfloat16_autocast_is_that_of_the_models_own_head(run, tmp_path):
    """Products in bfloat16 on both ways; the logits of one are rounded to it besides."""
    changes = {"bf16": True, "steps": 5}
    assert run(**changes, out=tmp_path / "heads") == 0
    assert run(**changes, out=tmp_path / "logits", logits=True) == 0
    for a, b in zip(metrics(tmp_path / "heads"), metrics(tmp_path / "logits"), strict=True):
        assert a.get("eval", a) == pytest.approx(b.get("eval", b), rel=0.02)


@pytest.mark.parametrize("logits", [False, True])
def test_what_reaches_the_loss(run, monkeypatch, logits):
    seen = []
    divergence = kd_kernels.divergence

    def spy(student, teacher, *args, **kwargs):
        if torch.is_grad_enabled():  # evaluation takes logits of a chunk either way
            seen.append((student, teacher, kwargs["chunk_tokens"], kwargs["memory_budget"]))
        return divergence(student, teacher, *args, **kwargs)

    monkeypatch.setattr(kd_kernels, "divergence", spy)
    changes = {"logits": True} if logits else {"chunk_tokens": 5}
    assert run(**changes, ce_weight=0.5, steps=2) == 0
    sides = {type(side) for call in seen for side in call[:2]}
    assert sides == ({torch.Tensor} if logits else {Head, TopK})
    assert {call[2] for call in seen} == {None if logits else 5}
    if not logits:
        assert run(memory_budget=100, steps=1, overwrite=True) == 0
        assert seen[-1][3] == 100 << 20


def test_cross_entropy_of_a_head(teacher):
    """Against the logits', in float64."""
    model = models.load_model(teacher, "float64", "cpu")
    tokens = torch.randint(0, 300, (2, 9))
    labels = tokens[:, 1:].clone()
    labels[0, :3] = -100
    batch = Batch(tokens[:, :-1], labels)
    expected = summed_cross_entropy(model(input_ids=batch.input_ids).logits, labels)
    loss = Form().summed_cross_entropy(Form().predict(model, batch), labels)
    torch.testing.assert_close(loss.double(), expected.double())
    expected.backward()
    weight = model.get_output_embeddings().weight
    gradient, weight.grad = weight.grad, None
    loss.backward()
    torch.testing.assert_close(weight.grad, gradient, rtol=1e-5, atol=1e-5)


def test_scaled_logits_of_other_families(run, tmp_path, student):
    """The head of a teacher whose logits are divided."""
    folder = tmp_path / "granite"
    save_model(folder, seed=1)  # for its tokenizer
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = GraniteConfig(vocab_size=300, logits_scaling=0.25, initializer_range=0.5, **shape)
    GraniteForCausalLM(config).save_pretrained(folder)
    assert run(teacher=folder, out=tmp_path / "heads") == 0
    assert run(teacher=folder, out=tmp_path / "logits", logits=True) == 0
    for a, b in zip(metrics(tmp_path / "heads"), metrics(tmp_path / "logits"), strict=True):
        assert a.get("eval", a) == pytest.approx(b.get("eval", b), rel=1e-3)


def test_a_head_that_cannot_be_used_is_refused_before_anything_is_written(run, tmp_path, capsys, monkeypatch):
    load = models.load_model

    def quantised(*args):
        model = load(*args)
        head = model.get_output_embeddings()
        head.weight = torch.nn.Parameter(head.weight.to(torch.float8_e4m3fn), requires_grad=False)
        return model

    monkeypatch.setattr(models, "load_model", quantised)
    assert run() == 2
    assert capsys.readouterr().err.strip().endswith("; or pass --logits")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"logits": True, "chunk_tokens": 4}, "--chunk-tokens cuts what --logits holds whole: give one of them"),
        ({"logits": True, "memory_budget": 4}, "--memory-budget cuts what --logits holds whole: give one of them"),
        ({"chunk_tokens": 4, "memory_budget": 4}, "chunk_tokens and memory_budget both decide the size of chunks"),
        ({"chunk_tokens": 0}, "--chunk-tokens must be at least 1, got 0"),
    ],
)
def test_options_that_contradict_one_another(run, tmp_path, capsys, changes, complaint):
    assert run(**changes) == 2
    assert complaint in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
