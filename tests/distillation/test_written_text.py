"""Text that models write: how tokens are drawn, when the student writes, what is kept of the teacher's."""

from pathlib import Path

import pytest
import torch
from interrupted import Crash, assert_same, crash, on_call
from safetensors.torch import load_file
from tiny import metrics, result
from transformers import AutoModelForCausalLM

from kd_kernels.distillation import models, objective
from kd_kernels.distillation.predictions import LiveTeacher
from kd_kernels.distillation.sampling import Sampling, Writer, uniform


def drawn(logits: list[float], n: int = 4000, **options) -> torch.Tensor:
    """How often each token is drawn of logits `[V]`."""
    rows = torch.tensor(logits).expand(n, -1)
    tokens = Sampling(1, **options).draw(rows, (torch.arange(n) + 0.5) / n)
    return torch.bincount(tokens, minlength=len(logits)) / n


def test_tokens_are_drawn_from_the_softmax():
    logits = [0.3, -1.0, float("-inf"), 2.0, 0.0]
    for temperature in (0.5, 1.0, 3.0):
        expected = (torch.tensor(logits) / temperature).softmax(-1)
        torch.testing.assert_close(drawn(logits, temperature=temperature), expected, atol=1e-3, rtol=0)


def test_top_k_and_top_p_cut_the_tail_off():
    logits = torch.tensor([0.1, 0.4, 0.05, 0.3, 0.15]).log().tolist()
    torch.testing.assert_close(drawn(logits, top_k=2), torch.tensor([0, 4 / 7, 0, 3 / 7, 0]), atol=1e-3, rtol=0)
    torch.testing.assert_close(drawn(logits, top_k=9), torch.tensor(logits).exp(), atol=1e-3, rtol=0)
    # 0.4 + 0.3 are not enough; with 0.15 they are.
    expected = torch.tensor([0, 0.4, 0, 0.3, 0.15]) / 0.85
    torch.testing.assert_close(drawn(logits, top_p=0.8), expected, atol=1e-3, rtol=0)
    assert drawn(logits, top_p=1e-9).tolist() == drawn(logits, top_k=1).tolist() == [0, 1, 0, 0, 0]
    torch.testing.assert_close(drawn(logits, top_p=1.0), torch.tensor(logits).exp(), atol=1e-3, rtol=0)


def test_the_ends_of_the_distribution():
    """Neither 0 nor the largest number below 1 draws what has no probability."""
    logits = torch.tensor([[float("-inf"), 0.0, 1.0, float("-inf")]]).expand(2, -1)
    numbers = torch.tensor([0.0, 1 - 2.0**-53], dtype=torch.float64)
    for options in ({}, {"top_k": 4}, {"top_p": 1.0}):
        assert sorted(Sampling(1, **options).draw(logits, numbers).tolist()) == [1, 2]


def writer(**changes) -> Writer:
    return Writer(**{"sampling": Sampling(4, temperature=0.7), "tokens": 281, "end": 0} | changes)


@pytest.mark.parametrize("whole_logits", [False, True])
def test_writing_is_drawing_token_by_token(teacher, whole_logits):
    """With cache and without padding, against the model's own logits of everything so far."""
    model = models.load_model(teacher, "float32", "cpu").train()
    blocks = torch.randint(1, 281, (3, 17))
    numbers = uniform(13, [5, 6, 7], "cpu")
    chosen = writer(whole_logits=whole_logits, end=-5)
    written = chosen.carry_on(model, blocks, numbers)
    assert model.training
    assert torch.equal(written[:, :4], blocks[:, :4])
    model.eval()
    for i in range(13):
        with torch.no_grad():
            logits = model(input_ids=written[:, : 4 + i]).logits[:, -1, :281]
        assert torch.equal(written[:, 4 + i], chosen.sampling.draw(logits, numbers[:, i]))
    alone = chosen.carry_on(model, blocks[1:2], numbers[1:2])
    assert torch.equal(alone, written[1:2])


def test_nothing_follows_the_end_of_a_text(teacher):
    model = models.load_model(teacher, "float32", "cpu")
    blocks = torch.randint(1, 281, (6, 17))
    blocks[5, 3:] = -100  # the prompt is not whole
    free = writer(end=-5).carry_on(model, blocks, uniform(13, range(6), "cpu"))
    end = int(free[0, 6])
    written = writer(end=end).carry_on(model, blocks, uniform(13, range(6), "cpu"))
    for row in range(5):
        ends = (free[row, 4:] == end).nonzero()
        last = 4 + int(ends[0]) if len(ends) else 16
        assert torch.equal(written[row, : last + 1], free[row, : last + 1])
        assert (written[row, last + 1 :] == -100).all()
    assert (written[5, 4:] == -100).all()


def test_only_tokens_that_the_tokenizer_knows_are_drawn(teacher):
    """The model has 300 entries, 281 of them tokens."""
    model = models.load_model(teacher, "float32", "cpu")
    blocks = torch.randint(1, 281, (8, 40))
    written = writer(sampling=Sampling(4, temperature=50.0), end=-5).carry_on(
        model, blocks, uniform(36, range(8), "cpu")
    )
    assert written.max() <= 280
    assert written[:, 4:].unique().numel() > 150


def test_on_policy_steps_are_that_fraction_and_have_no_text(run, tmp_path, monkeypatch):
    """Every token to predict is what the student wrote then; the rest of the steps is as ever."""
    seen = []
    original = objective.Distillation.__call__

    def spy(self, model, part, whole):
        seen.append({author.value: batch for author, batch in part.batches.items()})
        return original(self, model, part, whole)

    monkeypatch.setattr(objective.Distillation, "__call__", spy)
    assert run(on_policy=0.4, ce_weight=0.5, steps=24, out=tmp_path / "mixed") == 0
    mixed = list(seen)
    seen.clear()
    assert run(steps=24, out=tmp_path / "text") == 0
    share = sum("student" in step for step in mixed) / 24
    assert 0.2 < share < 0.6
    for step, plain in zip(mixed, seen, strict=True):
        assert set(plain) == {"text"}
        if "text" in step:
            assert torch.equal(step["text"].labels, plain["text"].labels)
        else:
            labels, given = step["student"].labels, plain["text"]
            assert (labels[:, :3] == -100).all()  # a prompt of 4 tokens
            assert torch.equal(step["student"].input_ids[:, :4], given.input_ids[:, :4])
            assert not torch.equal(labels[:, 3:], given.labels[:, 3:])
    records = [r for r in metrics(tmp_path / "mixed") if "loss" in r]
    for step, record in zip(mixed, records, strict=True):
        assert ("cross_entropy" in record) == ("text" in step)
        if "student" in step:
            assert record["loss"] == record["divergence"]
            assert record["tokens"] == step["student"].count() <= 4 * 13


@pytest.mark.parametrize(
    "changes", [{"on_policy": 1.0}, {"method": "gkd"}, {"method": "f_distill", "variant": "tvd"}], ids=lambda c: str(c)
)
def test_a_crash_loses_nothing(run, dropout_student, tmp_path, monkeypatch, changes):
    given = changes | {"student": dropout_student, "steps": 8, "sample_top_k": 50}
    assert run(**given, out=tmp_path / "whole", cache_dir=tmp_path / "one") == 0
    with monkeypatch.context() as patch:
        on_call(patch, objective.Distillation, "__call__", 6, crash)
        with pytest.raises(Crash):
            run(**given, cache_dir=tmp_path / "two")
    assert run(**given, cache_dir=tmp_path / "two", resume=True) == 0
    assert_same(tmp_path / "run", tmp_path / "whole")


def test_parts_of_a_step_write_what_the_whole_writes(run, tmp_path):
    for parts in (1, 2):
        assert run(on_policy=1.0, accumulate=parts, out=tmp_path / str(parts), steps=3) == 0
    for whole, split in zip(metrics(tmp_path / "1"), metrics(tmp_path / "2"), strict=True):
        assert whole.get("eval", whole) == pytest.approx(split.get("eval", split), rel=1e-3)


def test_bfloat16_writes(run):
    assert run(on_policy=1.0, steps=2, bf16=True, dtype="bfloat16", logits=True) == 0


@pytest.mark.parametrize("variant", ["kl", "rkl", "js", "tvd", "seqkd", "engine"])
def test_variants_of_f_distill_learn_from_the_text_that_they_should(run, tmp_path, monkeypatch, variant):
    seen = []
    original = objective.Distillation.__call__

    def spy(self, model, part, whole):
        seen.append({author.value for author in part.batches})
        return original(self, model, part, whole)

    looked = []
    teacher = LiveTeacher.__call__
    monkeypatch.setattr(LiveTeacher, "__call__", lambda self, batch: looked.append(batch) or teacher(self, batch))
    monkeypatch.setattr(objective.Distillation, "__call__", spy)
    assert run(method="f_distill", variant=variant, steps=25, cache_dir=tmp_path) == 0
    alone = {"kl": {"teacher"}, "rkl": {"student"}, "seqkd": {"teacher"}, "engine": {"student"}}
    authors = alone.get(variant, {"teacher", "student"})
    assert all(step == authors for step in seen)
    assert bool(looked) == (variant != "seqkd")
    if variant != "engine":  # without the entropy, it settles on the teacher's likeliest token
        assert result(tmp_path / "run")["improved"]["forward_kl"]
    if len(authors) == 2:
        for record in metrics(tmp_path / "run")[1:-1]:
            halves = record["teacher_text_f_distill"] + record["student_text_f_distill"]
            assert record["loss"] == pytest.approx(halves, rel=1e-5)


@pytest.fixture
def f_distill(run, tmp_path):
    return lambda **changes: run(
        **{"method": "f_distill", "variant": "kl", "steps": 3, "cache_dir": tmp_path / "cache"} | changes
    )


def texts(folder) -> dict[str, torch.Tensor]:
    return {path.parent.name: load_file(path)["blocks"] for path in sorted(folder.rglob("samples.safetensors"))}


def test_the_teacher_writes_once(f_distill, tmp_path, monkeypatch, teacher):
    drawn = []
    original = Writer.carry_on
    monkeypatch.setattr(
        Writer, "carry_on", lambda self, m, blocks, n: drawn.append(len(blocks)) or original(self, m, blocks, n)
    )
    assert f_distill() == 0
    ((name, kept),) = texts(tmp_path / "cache").items()
    rows = (kept[:, 0] != -1).nonzero().flatten()
    assert sum(drawn) == len(rows) == 12  # three batches of four
    drawn.clear()
    assert f_distill(overwrite=True, seed=7, variant="seqkd") == 0
    assert drawn == []
    assert f_distill(overwrite=True, steps=6) == 0  # what it lacks
    assert sum(drawn) == 12
    more = texts(tmp_path / "cache")[name]
    assert torch.equal(more[rows], kept[rows])

    model = AutoModelForCausalLM.from_pretrained(teacher)
    with torch.no_grad():
        logits = model(kept[rows, :-1].clamp(min=0).long()).logits.log_softmax(-1)
    labels = kept[rows, 1:].long()
    written = labels[:, 3:].clamp(min=0)
    likely = logits[:, 3:].gather(-1, written[..., None])[..., 0][labels[:, 3:] >= 0].mean()
    assert likely > logits[:, 3:].mean() + 1  # the teacher's own


def test_other_text_teacher_or_draws_are_other_samples(f_distill, tmp_path, data, student):
    other = tmp_path / "other.jsonl"
    other.write_text(Path(data).read_text().replace("w1 ", "w2 "))
    changes = [
        {},
        {"data": other},
        {"teacher": student},
        {"prompt_len": 5},
        {"sample_temperature": 0.5},
        {"seq_len": 20},
    ]
    for number, change in enumerate(changes, start=1):
        assert f_distill(**change, steps=1, overwrite=True) == 0
        assert len(texts(tmp_path / "cache")) == number


def test_damaged_samples_are_drawn_again(f_distill, tmp_path, capsys):
    assert f_distill() == 0
    (file,) = (tmp_path / "cache").rglob("samples.safetensors")
    before = file.read_bytes()
    file.write_bytes(before[:-3] + b"abc")
    capsys.readouterr()
    assert f_distill(overwrite=True) == 0
    assert "is damaged; the teacher writes again" in capsys.readouterr().err
    assert file.read_bytes() == before


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"on_policy": 1.5}, "--on-policy must be between 0 and 1, got 1.5"),
        ({"method": "sinkd", "on_policy": 0.5}, "--on-policy does not apply to --method sinkd"),
        ({"method": "f_distill", "on_policy": 0.5}, "--on-policy does not apply to --method f_distill"),
        ({"sample_top_k": 5}, "--sample-top-k says how the student writes, which it does not: pass --on-policy"),
        ({"on_policy": 1, "sample_top_k": 5, "sample_top_p": 0.5}, "both say which tokens are drawn: give one of them"),
        ({"on_policy": 1, "sample_top_p": 0.0}, "--sample-top-p must be above 0 and at most 1, got 0.0"),
        ({"on_policy": 1, "sample_temperature": 0}, "--sample-temperature must be above 0, got 0.0"),
        ({"on_policy": 1, "prompt_len": 17}, "--prompt-len 17 leaves nothing of --seq-len 16 to write"),
        ({"on_policy": 1, "teacher_cache": "/nowhere"}, "--teacher-cache knows the teacher on the text, not on what"),
        ({"method": "gkd", "teacher_cache": "/nowhere"}, "pass --on-policy 0"),
        ({"method": "gkd", "kind": "jsd"}, "--kind does not apply to --method gkd"),
        ({"method": "gkd", "beta": 2}, "beta must be"),
        ({"variant": "js"}, "--variant does not apply to --method divergence; it is an option of f_distill"),
    ],
    ids=lambda x: None if isinstance(x, str) else "-".join(map(str, x)),
)  # fmt: skip
def test_what_does_not_fit_is_refused_before_anything_is_written(run, tmp_path, capsys, given, complaint):
    assert run(**given) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert complaint in line
    assert not (tmp_path / "run").exists()
