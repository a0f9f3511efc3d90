"""`kd-kernels distill --method NAME`: every method on models that share a tokenizer."""

import pytest
import torch
from interrupted import Crash, assert_same, crash, on_call
from tiny import metrics, result
from torch.nn import functional as F  # noqa: N812

from kd_kernels import methods
from kd_kernels.distillation import models, objective
from kd_kernels.distillation.method import METHODS

# The loss of a step from logits, labels and who wrote them, as the paper of the method has it.
LOSSES = {
    "f_distill": lambda q, p, labels, author: methods.f_distill(
        "js", **{f"{author}_samples": methods.Samples(q, p, labels=labels)}
    ),
    "todi": lambda q, p, labels, author: methods.todi(q, p, labels),
    "gkd": lambda q, p, labels, author: methods.gkd(q, p, labels=labels),
    "distillm": lambda q, p, labels, author: methods.distillm(q, p, labels=labels),
    "distillm2": lambda q, p, labels, author: methods.distillm2(
        **{f"{author}_samples": methods.Samples(q, p, labels=labels)}, reduction="mean"
    ),
    "akl": lambda q, p, labels, author: methods.akl(q, p, labels=labels),
    "taid": lambda q, p, labels, author: methods.taid(q, p, 0.4, labels=labels),
    "bild": lambda q, p, labels, author: methods.bild(q, p, labels=labels),
    "dpkd": lambda q, p, labels, author: (
        0.5 * methods.dpkd(q, p, labels=labels) + 0.5 * F.cross_entropy(q.flatten(0, 1), labels.flatten())
    ),
    "kdrl": lambda q, p, labels, author: methods.kdrl(q, p, labels),
    "atkd": lambda q, p, labels, author: methods.atkd(q, p, labels),
}
# The gradient of these does not tell by the distance to the teacher, or says little of it in few steps.
SLOW = ("bild", "dpkd", "kdrl")


def test_there_is_every_method():
    drawn, other = {"sparse_logit_sampling"}, {"divergence", "sinkd", "multilevel_ot", "uld"}
    assert set(LOSSES) | drawn | other == set(METHODS)


@pytest.fixture
def seen(monkeypatch):
    """The batches of all steps, by author."""
    steps = []
    original = objective.Distillation.__call__

    def spy(self, model, part, whole):
        steps.append({author.value: batch for author, batch in part.batches.items()})
        return original(self, model, part, whole)

    monkeypatch.setattr(objective.Distillation, "__call__", spy)
    return steps


@pytest.mark.parametrize("method", LOSSES)
def test_the_loss_is_that_of_the_method_and_falls(run, tmp_path, teacher, student, seen, method):
    """From heads, against logits, in the first step; held-out text in the last."""
    assert run(method=method, steps=20, cache_dir=tmp_path) == 0
    q_model, p_model = (models.load_model(name, "float32", "cpu") for name in (student, teacher))
    expected = 0.0
    for author, batch in seen[0].items():
        with torch.no_grad():
            q, p = (model(input_ids=batch.input_ids).logits for model in (q_model, p_model))
        expected += LOSSES[method](q, p, batch.labels, author).item()
    records = [r for r in metrics(tmp_path / "run") if "loss" in r]
    assert records[0]["loss"] == pytest.approx(expected, rel=1e-4)
    found = result(tmp_path / "run")
    if method not in SLOW:
        assert found["improved"]["forward_kl"], found
    if method not in ("gkd", "taid"):  # their steps do not compare: by who wrote the text, by what the target is
        losses = [r["loss"] for r in records]
        assert sum(losses[-6:]) < sum(losses[:6])


def test_drawn_entries_are_an_unbiased_teacher(run, tmp_path):
    """With many draws the loss is the forward KL, but for the noise."""
    for method, changes in {"divergence": {}, "sparse_logit_sampling": {"draws": 5_000}}.items():
        assert run(method=method, **changes, steps=3, out=tmp_path / method) == 0
    exact, drawn = (
        [r["loss"] for r in metrics(tmp_path / method) if "loss" in r]
        for method in ("divergence", "sparse_logit_sampling")
    )
    assert drawn == pytest.approx(exact, rel=0.1)
    assert run(method="sparse_logit_sampling", steps=20, out=tmp_path / "few") == 0
    assert result(tmp_path / "few")["improved"]["forward_kl"]


@pytest.mark.parametrize("method", ["taid", "sparse_logit_sampling", "kdrl"])
def test_a_crash_loses_nothing(run, dropout_student, tmp_path, monkeypatch, method):
    given = {"method": method, "student": dropout_student, "steps": 8}
    assert run(**given, out=tmp_path / "whole") == 0
    with monkeypatch.context() as patch:
        on_call(patch, objective.Distillation, "__call__", 6, crash)
        with pytest.raises(Crash):
            run(**given)
    assert run(**given, resume=True) == 0
    assert_same(tmp_path / "run", tmp_path / "whole")


def test_the_teacher_of_taid_comes_closer_step_by_step(run, tmp_path):
    assert run(method="taid", steps=12, accumulate=2, seq_len=100) == 0
    schedule = methods.TAIDSchedule(12)
    for record in metrics(tmp_path / "run")[1:-1]:
        assert record["t"] == pytest.approx(schedule.t, rel=1e-5)
        schedule.update(record["taid"], record["step"])
    assert schedule.t == 1


@pytest.mark.parametrize(
    ("method", "changes"),
    [
        ("todi", {"on_policy": 0.5, "ce_weight": 0.2}),
        ("distillm", {"variant": "skl", "alpha": 0.2, "on_policy": 1.0, "sample_top_p": 0.9}),
        ("distillm2", {"detached": True, "beta": 1.2}),
        ("taid", {"on_policy": 0.5, "chunk_tokens": 7}),
        ("bild", {"logits": True, "on_policy": 0.5}),
        ("kdrl", {"variant": "k3", "logits": True}),
        ("atkd", {"hard_share": 0.25, "easy_weight": 0.5, "bf16": True}),
        ("akl", {"mu": 0.3, "bf16": True, "dtype": "bfloat16"}),
    ],
    ids=lambda x: x if isinstance(x, str) else "-".join(x),
)
def test_options_of_methods(run, tmp_path, method, changes):
    assert run(method=method, **changes, steps=3, cache_dir=tmp_path) == 0
    assert all(r["loss"] == r["loss"] for r in metrics(tmp_path / "run") if "loss" in r)


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"method": "distillm", "variant": "js"}, "--variant must be one of skl, srkl, got 'js'"),
        ({"method": "f_distill", "variant": "tvd", "beta": 0.3}, "--beta is an option of --variant js, got"),
        ({"method": "f_distill", "variant": "seqkd", "scale_t2": True}, "--scale-t2 is an option of --variant kl, rkl"),
        ({"method": "atkd", "accumulate": 2}, "--accumulate would keep tokens apart that --method atkd ranks"),
        ({"method": "dpkd", "backend": "reference"}, "--backend does not apply to --method dpkd"),
        ({"method": "todi", "kind": "jsd"}, "--kind does not apply to --method todi"),
        ({"method": "akl", "beta": 0.1}, "--beta does not apply to --method akl; it is an option of divergence"),
        ({"method": "taid", "t_start": 2.0}, "start must be between 0 and 1, got 2"),
        ({"method": "taid", "memory_budget": 5}, "--memory-budget does not apply to --method taid"),
        ({"method": "bild", "top_k": 1}, "top_k must be"),
        ({"method": "sparse_logit_sampling", "draws": 0}, "draws must be"),
        ({"method": "sparse_logit_sampling", "teacher_cache": "/nowhere"}, "--teacher-cache does not apply"),
        ({"method": "kdrl", "on_policy": 1.0}, "--on-policy does not apply to --method kdrl"),
        ({"method": "atkd", "hard_share": 1.5}, "hard_share must be"),
        ({"method": "distillm2", "beta": 3.0}, "beta must be"),
        ({"detached": True}, "--detached does not apply to --method divergence; it is an option of distillm2"),
    ],
    ids=lambda x: None if isinstance(x, str) else "-".join(map(str, x.values())),
)  # fmt: skip
def test_what_does_not_fit_is_refused_before_anything_is_written(run, tmp_path, capsys, given, complaint):
    assert run(**given) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert complaint in line
    assert not (tmp_path / "run").exists()
