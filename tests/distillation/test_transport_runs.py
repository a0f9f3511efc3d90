"""`kd-kernels distill --method sinkd | multilevel_ot | uld`."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from interrupted import Crash, assert_same, crash, metrics_so_far, on_call, wait_for
from tiny import character_tokenizer, metrics, result, save_model, sentence, tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from kd_kernels import methods
from kd_kernels.distillation import cross_tokenizer, models, objective, text
from kd_kernels.distillation.batches import Batch
from kd_kernels.distillation.evaluation import sample
from kd_kernels.distillation.predictions import logits, summed_cross_entropy
from kd_kernels.distillation.settings import Settings
from kd_kernels.distillation.spans import SpanBatch, Spans
from kd_kernels.distillation.text import PADDING

ACROSS = ("multilevel_ot", "uld")
PARTS = {
    "sinkd": {"divergence", "student_entropy", "teacher_entropy", "cross_entropy", "sinkd"},
    "multilevel_ot": {"cross_entropy", "multilevel_ot", "had", "sl", "sd"},
    "uld": {"cross_entropy", "uld"},
}
STEP = {"step", "loss", "lr", "grad_norm", "tokens"}


@pytest.fixture(scope="session")
def character_student(tmp_path_factory) -> str:
    """A student that reads characters, where the teacher reads words; its training draws random numbers."""
    folder = tmp_path_factory.mktemp("characters")
    return save_model(folder, seed=2, vocabulary=60, tokens=character_tokenizer(), attention_dropout=0.1)


@pytest.fixture
def changes(character_student, dropout_student):
    """What a small run of a method differs in."""
    across = {"student": character_student, "seq_len": 48}
    each = {
        "sinkd": {"student": dropout_student},
        "multilevel_ot": across | {"top_k": 8, "ot_weight": 5},  # this teacher knows nothing of the text
        "uld": across,
    }
    return lambda method: {"method": method} | each[method]


@pytest.mark.parametrize("method", PARTS)
def test_a_run_trains_and_reports_the_parts_of_its_loss(run, changes, tmp_path, capsys, method):
    assert run(**changes(method), steps=30, eval_every=15) == 0
    records = metrics(tmp_path / "run")
    steps = [r for r in records if "loss" in r]
    assert all(set(r) == STEP | PARTS[method] for r in steps)
    assert [r["step"] for r in records if "eval" in r] == [0, 15, 30]
    found = result(tmp_path / "run")
    assert all(found["improved"].values()), found
    assert method in found["improved"]
    assert found["after"][method] < found["before"][method]
    printed = capsys.readouterr()
    assert "The student improved on held-out text" in printed.out
    assert printed.err.startswith(f"{method}: ")
    if method in ACROSS:
        assert found["after"]["bits_per_byte"] < 0.9 * found["before"]["bits_per_byte"]
        assert "cross-entropy (bits/byte)" in printed.out


@pytest.mark.parametrize(
    ("method", "mix"),
    [
        ("sinkd", lambda r: 0.8 * r["divergence"] + 0.2 * r["cross_entropy"] + 0.0008 * r["sinkd"]),
        ("multilevel_ot", lambda r: r["cross_entropy"] + 5 * (r["had"] + 0.1 * r["sl"] + 0.1 * r["sd"])),
        ("uld", lambda r: r["cross_entropy"] + 1.5 * r["uld"]),
    ],
)
def test_the_loss_is_the_papers_mix_of_its_parts(run, changes, tmp_path, method, mix):
    assert run(**changes(method), steps=3) == 0
    for record in metrics(tmp_path / "run")[1:-1]:
        assert record["loss"] == pytest.approx(mix(record), rel=1e-5)


def test_weights_and_parameters_are_those_asked_for(run, changes, tmp_path, monkeypatch):
    seen = []
    original = methods.multilevel_ot
    monkeypatch.setattr(methods, "multilevel_ot", lambda *args, **kw: seen.append(kw) or original(*args, **kw))
    given = {"ot_weight": 2.0, "beta": 0.5, "gamma": 0.25, "eps": 0.2, "iterations": 7, "temperature": 3.0}
    assert run(**changes("multilevel_ot") | given, steps=2) == 0
    expected = {"k": 8, "beta": 0.5, "gamma": 0.25, "eps": 0.2, "iterations": 7, "tau_sd": 3.0, "backend": "auto"}
    assert all(call.items() >= expected.items() for call in seen)
    record = metrics(tmp_path / "run")[1]
    assert record["loss"] == pytest.approx(record["cross_entropy"] + 2 * record["multilevel_ot"], rel=1e-5)
    assert record["multilevel_ot"] == pytest.approx(record["had"] + 0.5 * record["sl"] + 0.25 * record["sd"], rel=1e-5)


@pytest.mark.parametrize("method", ACROSS)
def test_padding_changes_nothing(teacher, character_student, data, method):
    """The loss of a batch is that of its spans, one at a time and without padding."""
    student = models.load_model(character_student, "float32", "cpu").eval()
    other = models.load_model(teacher, "float32", "cpu").eval()
    documents = [sentence(n, n) for n in (3, 17, 9, 30)]
    spans = Spans.of(documents, character_tokenizer(), tokenizer(), 200)
    settings = Settings(method=method, top_k=8, device="cpu").resolve()
    compare = cross_tokenizer.comparison(settings)
    objective = cross_tokenizer.CrossTokenizer(other, compare, method, 1.0)
    every = SpanBatch.of(spans, "cpu")

    def parts(rows: torch.Tensor) -> dict[str, torch.Tensor]:
        loss, found = objective(student, SpanBatch.of(spans[rows], "cpu"), every)
        return {"loss": loss.detach(), **found}

    whole = parts(torch.arange(4))
    single = [parts(torch.tensor([row])) for row in range(4)]
    for name, value in whole.items():
        torch.testing.assert_close(value, sum(x[name] for x in single))


@pytest.mark.parametrize("method", [*ACROSS, "sinkd"])
def test_accumulation_changes_memory_not_the_steps(run, changes, tmp_path, method):
    given = changes(method) | ({"form": "sequence"} if method == "sinkd" else {})
    for parts in (1, 2):
        assert run(**given, out=tmp_path / str(parts), accumulate=parts, steps=1) == 0
    whole, split = (metrics(tmp_path / str(parts))[0]["eval"] for parts in (1, 2))
    assert whole == pytest.approx(split, rel=1e-5)


def test_the_held_out_numbers_are_those_of_the_models(run, changes, tmp_path, teacher, data):
    """Bits per byte and ULD of the saved student, span by span."""
    assert run(**changes("uld"), steps=5, eval_blocks=1000) == 0
    folder = tmp_path / "run" / "student"
    student, other = (AutoModelForCausalLM.from_pretrained(name).eval() for name in (folder, teacher))
    _, held_out = text.split([json.loads(line)["text"] for line in Path(data).read_text().splitlines()], 0.1)
    spans = Spans.of(held_out, AutoTokenizer.from_pretrained(folder), AutoTokenizer.from_pretrained(teacher), 48)
    assert len(AutoTokenizer.from_pretrained(folder)) == 13
    nats = teacher_nats = uld = tokens = 0
    for row in range(len(spans)):
        batch = SpanBatch.of(spans[torch.tensor([row])], "cpu")
        with torch.no_grad():
            q, p = logits(student, batch.student), logits(other, batch.teacher)
        nats += summed_cross_entropy(q, batch.student.labels).item()
        teacher_nats += summed_cross_entropy(p, batch.teacher.labels).item()
        n = min(q.shape[1], p.shape[1])
        q, p = (x[0, :n].softmax(-1).sort(-1, descending=True).values for x in (q, p))
        uld += (torch.nn.functional.pad(q, (0, p.shape[1] - q.shape[1])) - p).abs().sum().item()
        tokens += batch.count()
    size = sum(len(document.encode()) for document in held_out)
    found = result(tmp_path / "run")
    assert found["held_out_tokens"] == tokens
    assert found["after"]["bits_per_byte"] == pytest.approx(nats / size / torch.tensor(2.0).log().item(), rel=1e-4)
    assert found["teacher"]["bits_per_byte"] == pytest.approx(
        teacher_nats / size / torch.tensor(2.0).log().item(), rel=1e-4
    )
    assert found["after"]["uld"] == pytest.approx(uld / tokens, rel=1e-4)


@pytest.mark.parametrize("method", PARTS)
def test_a_crash_loses_nothing(run, changes, tmp_path, monkeypatch, method):
    given = changes(method) | {"steps": 7, "eval_every": 4}
    assert run(**given, out=tmp_path / "whole") == 0
    loss = objective.Distillation if method == "sinkd" else cross_tokenizer.CrossTokenizer
    with monkeypatch.context() as patch:
        on_call(patch, loss, "__call__", 6, crash)
        with pytest.raises(Crash):
            run(**given)
    assert run(**given, resume=True) == 0
    assert_same(tmp_path / "run", tmp_path / "whole")


def test_kill_9_loses_nothing_across_tokenizers(arguments, run, changes, tmp_path):
    given = changes("uld") | {"steps": 9}
    out = tmp_path / "run"
    slow = (
        "import time, torch\n"
        "torch.set_num_threads(1)\n"
        "from kd_kernels.distillation.cross_tokenizer import CrossTokenizer as L\n"
        "call = L.__call__\n"
        "L.__call__ = lambda *args: (time.sleep(0.2), call(*args))[1]\n"
        "from kd_kernels.cli import main\n"
    )
    process = subprocess.Popen([sys.executable, "-c", f"{slow}main({arguments(**given)!r})"])
    wait_for(lambda: (out / "metrics.jsonl").exists() and len(metrics_so_far(out)) >= 6)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (out / "result.json").exists()
    assert run(**given, resume=True) == 0
    assert run(**given, out=tmp_path / "whole") == 0
    assert_same(out, tmp_path / "whole")


def test_resume_refuses_another_method(run, changes, capsys):
    assert run(**changes("uld"), steps=2) == 0
    capsys.readouterr()
    assert run(**changes("uld") | {"ot_weight": 1.0}, steps=2, resume=True) == 2
    assert ": --ot-weight was 1.5, is 1.0\n" in capsys.readouterr().err


@pytest.mark.parametrize("method", ACROSS)
def test_tokenizers_may_be_the_same(run, tmp_path, method):
    assert run(method=method, steps=3) == 0
    assert result(tmp_path / "run")["improved"]


@pytest.mark.parametrize("form", ["batch", "sequence", "sample"])
def test_every_form_of_sinkd(run, tmp_path, teacher, student, data, form):
    """The transport before the first step, from the models' own logits."""
    assert run(method="sinkd", form=form, steps=1) == 0
    pair = [models.load_model(name, "float32", "cpu").eval() for name in (student, teacher)]
    _, held_out = text.split([json.loads(line)["text"] for line in Path(data).read_text().splitlines()], 0.1)
    batch = Batch.of(sample(text.blocks(held_out, tokenizer(), 16), 4), "cpu")
    with torch.no_grad():
        q, p = (logits(model, batch) for model in pair)
        expected = methods.sinkd(q, p, mask=batch.labels != PADDING, form=form, reduction="mean")
    assert result(tmp_path / "run")["before"]["sinkd"] == pytest.approx(expected.item(), rel=1e-5)


def test_sinkd_compares_the_entries_that_both_sides_have(run, tmp_path):
    padded = save_model(tmp_path / "padded", seed=3, vocabulary=320)
    assert run(method="sinkd", student=padded) == 0
    assert result(tmp_path / "run")["improved"]["sinkd"]


def test_bfloat16(run, changes, tmp_path):
    for method in PARTS:
        assert run(**changes(method), steps=3, bf16=True, dtype="bfloat16", out=tmp_path / method) == 0


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        (
            {"method": "sinkd", "characters": True},
            "differ: choose models that share one, or --method multilevel_ot or uld",
        ),
        (
            {"method": "uld", "kind": "jsd"},
            "--kind does not apply to --method uld; it is an option of divergence, sinkd",
        ),
        (
            {"method": "uld", "ce_weight": 0.0},
            "--ce-weight does not apply to --method uld, where cross-entropy has weight 1 and --ot-weight is that of "
            "the rest; it is an option of divergence, ",
        ),
        ({"method": "uld", "gamma": 0.1}, "--gamma does not apply to --method uld; it is an option of multilevel_ot"),
        ({"method": "multilevel_ot", "form": "batch"}, "--form does not apply to --method multilevel_ot"),
        ({"method": "sinkd", "top_k": 4}, "--top-k does not apply to --method sinkd"),
        (
            {"ot_weight": 0.1},
            "--ot-weight does not apply to --method divergence; it is an option of sinkd, multilevel_ot, uld",
        ),
        (
            {"method": "uld", "teacher_cache": "/nowhere"},
            "--teacher-cache does not apply to --method uld, which compares whole distributions; it is an option of "
            "divergence",
        ),
        ({"method": "sinkd", "teacher_cache": "/nowhere"}, "--teacher-cache does not apply to --method sinkd"),
        (
            {"method": "sinkd", "chunk_tokens": 4},
            "--chunk-tokens does not apply to --method sinkd, which holds logits whole",
        ),
        ({"method": "sinkd", "accumulate": 2}, "--accumulate would keep tokens apart that --form batch compares"),
        ({"method": "sinkd", "eps": 0.0}, "eps must be"),
        ({"method": "sinkd", "iterations": 0}, "iterations must be"),
        ({"method": "uld", "temperature": 0}, "temperature must be"),
        ({"method": "uld", "ot_weight": -1}, "--ot-weight must be at least 0, got -1.0"),
        ({"method": "multilevel_ot", "beta": -1}, "beta must be"),
        ({"method": "multilevel_ot", "characters": True}, "k must be at most 60, the smaller vocabulary, got 70"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_before_anything_is_written(
    run, character_student, tmp_path, capsys, given, complaint
):
    given = dict(given)
    if given.pop("characters", False):
        given["student"] = character_student
        if given["method"] == "multilevel_ot":
            given["top_k"] = 70
    assert run(**given) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert complaint in line
    assert not (tmp_path / "run").exists()


def test_a_tokenizer_that_its_model_does_not_know_is_refused(run, tmp_path, capsys):
    small = save_model(tmp_path / "small", seed=3, vocabulary=10, tokens=character_tokenizer())
    assert run(method="uld", student=small) == 2
    assert "the student's vocabulary must have the 13 entries of its tokenizer, got 10" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
