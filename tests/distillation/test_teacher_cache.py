"""A teacher's predictions in a file: what is trained from them, and what is refused."""

import json
import os
import signal
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from tiny import metrics, result, save_model, tokenizer, weights
from transformers import AutoModelForCausalLM, AutoTokenizer

from kd_kernels.cli import main
from kd_kernels.distillation import caching, teacher_cache_file, text
from kd_kernels.distillation.batches import Batches
from kd_kernels.distillation.teacher_cache import TeacherCache
from kd_kernels.testing.budget import allowed_error, assert_within_budget

V = 300


@pytest.fixture
def cache(teacher, data, tmp_path):
    """Makes a cache; returns the exit status and the file."""

    def make(*, out: str = "cache.safetensors", **changes):
        values = {"teacher": teacher, "data": data, "seq_len": 16, "batch_size": 4, "top_k": 20} | changes
        line = ["cache-teacher", "--out", str(tmp_path / out)]
        for name, value in values.items():
            flag = f"--{name.replace('_', '-')}"
            line += [flag] if value is True else [flag, str(value)]
        return main(line), tmp_path / out

    return make


def complaint(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err.splitlines()[-1].removeprefix("kd-kernels: ")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "changes",
    [{}, {"kind": "jsd", "temperature": 2.0}, {"ce_weight": 0.5, "accumulate": 2}],
    ids=["plain", "jsd", "accumulate"],
)
def test_a_complete_cache_trains_to_the_same_bits_as_the_live_teacher(run, cache, tmp_path, dtype, changes):
    changes = changes | {"logits": True, "dtype": dtype, "steps": 25}  # more than an epoch
    parts = changes.get("accumulate", 1)
    status, file = cache(top_k=V, dtype=dtype, batch_size=4 // parts)
    assert status == 0
    assert run(**changes, out=tmp_path / "live") == 0
    assert run(**changes, out=tmp_path / "cached", teacher_cache=file) == 0
    assert metrics(tmp_path / "cached") == metrics(tmp_path / "live")
    assert weights(tmp_path / "cached") == weights(tmp_path / "live")
    assert result(tmp_path / "cached") == result(tmp_path / "live")


def test_the_teacher_is_not_run_for_the_steps(run, cache, tmp_path, teacher, monkeypatch):
    _, file = cache()
    seen = []
    forward = AutoModelForCausalLM.from_pretrained(teacher).__class__.forward

    def spy(self, *args, **kwargs):
        seen.append(self.training)
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(AutoModelForCausalLM.from_pretrained(teacher).__class__, "forward", spy)
    assert run(teacher_cache=file, steps=8) == 0
    assert seen.count(True) == 8  # the student, which alone trains
    assert seen.count(False) == 4  # one batch before and after, both models


@pytest.mark.parametrize("tail", ["bucket", "renormalize", "truncate"])
def test_a_sparse_cache_gives_the_loss_that_its_entries_define(run, cache, tmp_path, teacher, student, data, tail):
    """The first step's loss in float64, from the teacher's own logits."""
    temperature = 2.0
    _, file = cache(temperature=temperature, precision="float32")
    assert run(teacher_cache=file, tail=tail, temperature=temperature, steps=1, batch_size=1000, lr=1e-9) == 0
    words = AutoTokenizer.from_pretrained(teacher)
    training, _ = text.split(text.read(Path(data), None), 0.1)
    blocks = text.blocks(training, words, 16)
    ids, labels = blocks[:, :-1].clamp(min=0).long(), blocks[:, 1:]
    with torch.no_grad():
        log_p, log_q = (
            (AutoModelForCausalLM.from_pretrained(name)(ids).logits.double() / temperature).log_softmax(-1)
            for name in (teacher, student)
        )
    log_p, listed = log_p.topk(20)
    log_q = log_q.gather(-1, listed)
    if tail == "bucket":
        log_p, log_q = (torch.cat([x, (-x.exp().sum(-1, keepdim=True)).log1p()], -1) for x in (log_p, log_q))
    elif tail == "renormalize":
        log_p, log_q = log_p.log_softmax(-1), log_q.log_softmax(-1)
    # A step draws its blocks from endless epochs.
    rows = Batches(blocks, 1000, seed=7, device="cpu").rows(0)
    per_block = (log_p.exp() * (log_p - log_q)).sum(-1).masked_fill(labels < 0, 0).sum(-1)
    expected = per_block[rows].sum() / (labels >= 0).sum(-1)[rows].sum()
    assert metrics(tmp_path / "run")[1]["divergence"] == pytest.approx(expected.item(), rel=1e-5)


def test_resuming_with_a_cache(run, cache, tmp_path):
    _, file = cache()
    assert run(teacher_cache=file, steps=9, out=tmp_path / "whole") == 0
    assert run(teacher_cache=file, steps=9) == 0
    (tmp_path / "run" / "result.json").unlink()
    moved = file.rename(tmp_path / "moved.safetensors")
    assert run(teacher_cache=moved, steps=9, resume=True) == 0
    assert metrics(tmp_path / "run") == metrics(tmp_path / "whole")
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")


def test_resuming_with_another_cache_is_refused(run, cache, capsys):
    _, file = cache()
    assert run(teacher_cache=file) == 0
    _, other = cache(out="other.safetensors", precision="float32")
    for given in (other, None):
        assert run(teacher_cache=given, resume=True) == 2
        assert "the file of --teacher-cache is another" in complaint(capsys)


def rows(teacher: str, data: str, temperature: float, dtype: torch.dtype) -> torch.Tensor:
    """log-probabilities [n, L, V] of the training blocks."""
    words = AutoTokenizer.from_pretrained(teacher)
    training, _ = text.split(text.read(Path(data), None), 0.1)
    blocks = text.blocks(training, words, 16)
    with torch.no_grad():
        logits = AutoModelForCausalLM.from_pretrained(teacher)(blocks[:, :-1].clamp(min=0).long()).logits
    return (logits.to(dtype) / temperature).log_softmax(-1)


@pytest.mark.parametrize("logits", [False, True])
@pytest.mark.parametrize(("precision", "digits"), [("float16", 11), ("float32", 24)])
def test_what_is_kept_is_right_to_its_precision(cache, teacher, data, precision, digits, logits):
    """The largest entries, their log-probabilities rounded once, and a tail that is not rounded with them."""
    _, file = cache(precision=precision, temperature=0.5, **({"logits": True} if logits else {}))
    exact = rows(teacher, data, 0.5, torch.float64)
    made = TeacherCache(file)
    target = made.source("bucket", "cpu")(type("Batch", (), {"rows": range(len(exact))}))
    assert target.ids.dtype == torch.int64
    assert made.rows([0])["ids"].dtype == torch.uint16
    expected = exact.topk(20).values
    half = expected.abs().log2().floor().exp2() * 2.0**-digits  # of a unit in the last place
    shift = (expected.softmax(-1) * half).sum(-1, keepdim=True)  # what setting the total right can add to all
    at_ids = exact.gather(-1, target.ids)
    eager = rows(teacher, data, 0.5, torch.float32).gather(-1, target.ids)
    float32 = allowed_error(at_ids, eager)
    assert ((at_ids - expected).abs() <= float32).all()
    assert ((target.logprobs - at_ids).abs() <= 1.01 * (half + shift) + 2 * float32).all()
    total, size = at_ids.logsumexp(-1), at_ids.abs().max().item()
    assert_within_budget(target.logprobs.double().logsumexp(-1), total, eager.logsumexp(-1), "total", size)


def test_more_entries_come_closer_to_the_live_loss(run, cache, tmp_path):
    assert run(out=tmp_path / "live", steps=1) == 0
    live = metrics(tmp_path / "live")[1]["divergence"]
    gaps = []
    for k in (2, 20, 250, 299):
        _, file = cache(top_k=k, out=f"{k}.safetensors")
        assert run(out=tmp_path / str(k), teacher_cache=file, steps=1) == 0
        gaps.append(live - metrics(tmp_path / str(k))[1]["divergence"])
    assert gaps == sorted(gaps, reverse=True)  # a bucket hides some of the divergence
    assert gaps[0] > 0
    assert abs(gaps[-1]) < 1e-3 * live


@pytest.mark.parametrize("larger", ["teacher", "student"])
def test_vocabularies_may_be_padded_to_different_sizes(run, cache, tmp_path, larger):
    padded = save_model(tmp_path / "padded", seed=3, vocabulary=320)
    for k in (20, 320):
        _, file = cache(**({"teacher": padded} if larger == "teacher" else {}), top_k=k, out=f"{k}.safetensors")
        assert run(**{larger: padded}, teacher_cache=file, out=tmp_path / str(k)) == 0
        assert result(tmp_path / str(k))["improved"]["forward_kl"]


CHANGES = {
    "seq_len": ({"seq_len": 32}, "--seq-len was 16, is 32"),
    "holdout": ({"holdout": 0.3}, "--holdout was 0.1, is 0.3"),
    "temperature": ({"temperature": 2.0}, "--temperature was 1.0, is 2.0"),
    "dtype": ({"dtype": "bfloat16"}, "--dtype was float32, is bfloat16"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_cache_of_something_else_is_refused(run, cache, tmp_path, capsys, name):
    changes, difference = CHANGES[name]
    _, file = cache()
    assert run(teacher_cache=file, **changes) == 2
    assert complaint(capsys) == f"{file} was made for something else: {difference}"
    assert not (tmp_path / "run").exists()


def test_a_complete_cache_serves_every_temperature(run, cache):
    _, file = cache(top_k=V)
    assert run(teacher_cache=file, temperature=3.0) == 0


def test_a_cache_of_another_text_teacher_or_tokenizer_is_refused(run, cache, tmp_path, capsys, data):
    _, file = cache()
    other = tmp_path / "other.jsonl"
    other.write_text(Path(data).read_text() + json.dumps({"text": "w1 w2"}) + "\n")
    assert run(teacher_cache=file, data=other) == 2
    assert "made for something else: the text of --data was " in complaint(capsys)
    assert run(teacher_cache=file, teacher=save_model(tmp_path / "t", seed=5)) == 2
    assert "made for something else: the teacher was " in complaint(capsys)
    assert run(teacher_cache=file, teacher=save_model(tmp_path / "wide", seed=1, vocabulary=320)) == 2
    assert "the size of the teacher's vocabulary was 300, is 320" in complaint(capsys)
    words = tokenizer([f"w{i}" for i in range(279, -1, -1)])
    models = {role: save_model(tmp_path / f"{role}-other", seed=1, tokens=words) for role in ("teacher", "student")}
    assert run(teacher_cache=file, **models) == 2
    assert "made for something else: the tokenizer was " in complaint(capsys)
    assert not (tmp_path / "run").exists()


def flip(file: Path, at: int) -> None:
    content = bytearray(file.read_bytes())
    content[at] ^= 1
    file.write_bytes(content)


def end_of_header(file: Path) -> int:
    return 8 + int.from_bytes(file.read_bytes()[:8], "little")


DAMAGE = {
    "cut": lambda file: os.truncate(file, file.stat().st_size - 7),
    "cut to nothing": lambda file: os.truncate(file, 0),
    "longer": lambda file: file.write_bytes(file.read_bytes() + b"0" * 64),
    "first byte of the tensors": lambda file: flip(file, end_of_header(file)),
    "last byte": lambda file: flip(file, -1),
    "metadata": lambda file: file.write_bytes(file.read_bytes().replace(b'holdout\\": 0.1', b'holdout\\": 0.3')),
    "hash": lambda file: file.write_bytes(file.read_bytes().replace(b'"sha256": "', b'"sha256": "0')[:-1]),
    "another file": lambda file: file.write_bytes(b"kd"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_noticed_and_never_trained_on(run, cache, tmp_path, capsys, damage):
    _, file = cache()
    DAMAGE[damage](file)
    assert run(teacher_cache=file) == 2
    message = complaint(capsys)
    assert str(file) in message
    assert any(words in message for words in ("is damaged", "no teacher cache"))
    assert not (tmp_path / "run").exists()


def test_a_file_of_weights_is_no_cache(run, tmp_path, teacher, capsys):
    assert run(teacher_cache=Path(teacher) / "model.safetensors") == 2
    assert "model.safetensors is no teacher cache; kd-kernels cache-teacher makes one" in complaint(capsys)
    assert run(teacher_cache=tmp_path / "nowhere") == 2
    assert "No such file" in complaint(capsys)


def test_a_later_format_is_refused(run, cache, capsys, monkeypatch):
    monkeypatch.setattr(teacher_cache_file, "FORMAT", 2)
    _, file = cache()
    monkeypatch.undo()
    assert run(teacher_cache=file) == 2
    assert complaint(capsys).endswith("has format 2; this version reads format 1")


def test_an_interrupted_command_leaves_nothing_that_looks_like_a_cache(cache, tmp_path, monkeypatch):
    original, calls = caching._top, []

    def interrupt(*args):
        calls.append(0)
        if len(calls) == 3:
            signal.raise_signal(signal.SIGINT)
        return original(*args)

    monkeypatch.setattr(caching, "_top", interrupt)
    status, file = cache()
    assert status == 130
    assert list(tmp_path.iterdir()) == []
    assert cache()[0] == 0
    assert file.exists()


def test_what_a_killed_command_leaves_is_refused(cache, tmp_path, monkeypatch):
    monkeypatch.setattr(teacher_cache_file, "_digest", lambda file: os._exit(9))
    child = os.fork()
    if child == 0:
        cache()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    monkeypatch.undo()
    (left,) = tmp_path.iterdir()
    assert left.suffix == ".tmp"
    with pytest.raises(ValueError, match="is damaged"):
        TeacherCache(left)


def test_an_existing_file_is_kept_unless_told_otherwise(cache, capsys):
    _, file = cache()
    before = file.read_bytes()
    capsys.readouterr()
    assert cache(top_k=5)[0] == 2
    assert complaint(capsys) == f"{file} is there already: pass --overwrite, or another --out"
    assert file.read_bytes() == before
    assert cache(top_k=5, overwrite=True)[0] == 0
    assert TeacherCache(file).top_k == 5


def test_the_file_is_the_same_every_time_and_says_what_it_is(cache, teacher):
    _, file = cache()
    assert cache(out="again.safetensors")[1].read_bytes() == file.read_bytes()
    with safe_open(file, framework="pt") as opened:
        said = json.loads(opened.metadata()["kd_kernels"])
    assert said["teacher"] == teacher
    assert (said["format"], said["top_k"], said["vocabulary"], said["temperature"]) == (1, 20, V, 1.0)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"top_k": 0}, "--top-k must be at least 1, got 0"),
        ({"temperature": 0}, "temperature must be between 0.0001 and 1e+06, got 0.0"),
        ({"teacher": "/nowhere"}, "/nowhere is not a model directory"),
    ],
)
def test_mistakes_get_one_line_and_status_2(cache, tmp_path, capsys, changes, expected):
    assert cache(**changes)[0] == 2
    assert expected in complaint(capsys)
    assert list(tmp_path.iterdir()) == []


def test_too_little_space_is_noticed_before_the_work(cache, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(caching.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    assert cache()[0] == 2
    assert "needs 0.0 GB, 0.0 are free: choose a smaller --top-k" in complaint(capsys)
    assert list(tmp_path.iterdir()) == []


def test_tail_needs_a_cache(run, capsys):
    assert run(tail="bucket") == 2
    assert complaint(capsys) == "--tail says what a --teacher-cache left out: give both, or neither"
