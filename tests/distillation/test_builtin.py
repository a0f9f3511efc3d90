"""The built-in pair, at a small scale: the teacher is trained once, cached, checked and resumed."""

import signal
import socket
from pathlib import Path

import pytest
import torch
from tiny import metrics, result, sentence, weights
from torch.nn import functional as F  # noqa: N812
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2Tokenizer

from kd_kernels.cli import main
from kd_kernels.distillation import builtin
from kd_kernels.distillation.batches import Batch
from kd_kernels.distillation.builtin import PaddedNextToken
from kd_kernels.distillation.loop import Plan
from kd_kernels.distillation.predictions import logits


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("\n".join(sentence(20, seed) for seed in range(60)))
    return path


@pytest.fixture
def run(tmp_path, data, monkeypatch):
    """The command on the built-in models, small; nobody is called for help."""
    monkeypatch.setattr(builtin, "VOCABULARY", 700)
    monkeypatch.setattr(builtin, "TOKENS", 300)
    monkeypatch.setattr(builtin, "OWN_VOCABULARY", 500)
    monkeypatch.setattr(builtin, "OWN_TOKENS", 280)
    monkeypatch.setattr(builtin, "SEQ_LEN", 32)
    monkeypatch.setattr(
        builtin, "PLAN", Plan(steps=12, lr=1e-2, warmup=2, weight_decay=0.1, clip=1.0, seed=0, save_every=5)
    )

    def refuse(*_: object) -> None:
        pytest.fail("something went to the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    common = ["distill", "--data", str(data), "--steps", "5", "--eval-blocks", "4", "--cache-dir"]
    return lambda out, cache="cache", *more: main([*common, str(tmp_path / cache), "--out", str(tmp_path / out), *more])


def trainings(monkeypatch: pytest.MonkeyPatch) -> list[Qwen2Tokenizer]:
    """Records the trainings of teachers from now on: their tokenizers."""
    seen: list[Qwen2Tokenizer] = []
    original = builtin._train_teacher

    def spy(documents, tokenizer, work, device):
        seen.append(tokenizer)
        return original(documents, tokenizer, work, device)

    monkeypatch.setattr(builtin, "_train_teacher", spy)
    return seen


def cached(tmp_path: Path) -> Path:
    (folder,) = (tmp_path / "cache").glob("teacher-*")
    return folder


def test_the_teacher_is_trained_once(run, tmp_path, monkeypatch):
    seen = trainings(monkeypatch)
    assert run("first") == 0
    assert run("second") == 0
    assert len(seen) == 1
    assert metrics(tmp_path / "first") == metrics(tmp_path / "second")
    assert weights(tmp_path / "first") == weights(tmp_path / "second")
    assert not (tmp_path / "first" / "teacher").exists()
    assert torch.get_num_threads() == 1
    assert (
        result(tmp_path / "first")["teacher"]["cross_entropy"] < result(tmp_path / "first")["before"]["cross_entropy"]
    )


@pytest.mark.parametrize("damage", ["flip", "remove", "manifest"])
def test_a_damaged_teacher_is_trained_again(run, tmp_path, monkeypatch, capsys, damage):
    seen = trainings(monkeypatch)
    assert run("first") == 0
    tensors = cached(tmp_path) / "model.safetensors"
    sound = tensors.read_bytes()
    if damage == "flip":
        tensors.write_bytes(sound[:-5] + bytes([sound[-5] ^ 1]) + sound[-4:])
    elif damage == "remove":
        tensors.unlink()
    else:
        (cached(tmp_path) / "manifest.json").write_text("{")
    capsys.readouterr()
    assert run("second") == 0
    assert "is damaged; training the teacher again" in capsys.readouterr().err
    assert len(seen) == 2
    assert tensors.read_bytes() == sound
    assert metrics(tmp_path / "first") == metrics(tmp_path / "second")


def test_the_tokenizer_comes_back_as_it_was(run, tmp_path, monkeypatch):
    """Loading picks a tokenizer's class by that of the model, whatever class was saved."""
    seen = trainings(monkeypatch)
    assert run("run") == 0
    prose = "The naïve café's 42 *args*;\n\n   indented  text w1 w20: {x!r}"
    expected = seen[0](prose)["input_ids"]
    for folder in (cached(tmp_path), tmp_path / "run" / "student"):
        loaded = AutoTokenizer.from_pretrained(folder)
        assert loaded(prose)["input_ids"] == expected
        assert loaded.decode(expected) == prose


@pytest.mark.parametrize("method", ["uld", "multilevel_ot"])
def test_a_student_with_a_tokenizer_of_its_own(run, tmp_path, data, monkeypatch, method):
    seen = trainings(monkeypatch)
    letters = str.maketrans("0123456789", "aeioutnsrl")  # of which, unlike digits, byte pairs are made
    data.write_text(data.read_text().translate(letters))
    across = ("--method", method, "--seq-len", "48")
    assert run("first", "cache", *across) == 0
    assert run("second", "cache", *across) == 0
    assert len(seen) == 1
    assert metrics(tmp_path / "first") == metrics(tmp_path / "second")
    assert weights(tmp_path / "first") == weights(tmp_path / "second")
    folder = tmp_path / "first" / "student"
    assert AutoModelForCausalLM.from_pretrained(folder).vocab_size == 500
    student, teacher = (AutoTokenizer.from_pretrained(name) for name in (folder, cached(tmp_path)))
    assert [len(student), len(teacher)] == [280, 300]
    prose = sentence(20, 1).translate(letters)
    assert len(student(prose)["input_ids"]) > len(teacher(prose)["input_ids"])
    assert all(tok.decode(tok(prose)["input_ids"]) == prose for tok in (student, teacher))


def test_another_text_gets_another_teacher(run, tmp_path, data, monkeypatch):
    seen = trainings(monkeypatch)
    assert run("first") == 0
    data.write_text(data.read_text() + "\nw1 w2 w3")
    assert run("second") == 0
    assert len(seen) == 2
    assert len(list((tmp_path / "cache").glob("teacher-*"))) == 2


def test_the_training_of_a_teacher_resumes(run, tmp_path, monkeypatch):
    calls = []
    original = PaddedNextToken.__call__

    def interrupt(self, *args):
        calls.append(len(calls) + 1)
        if len(calls) == 7:
            signal.raise_signal(signal.SIGINT)
        return original(self, *args)

    monkeypatch.setattr(PaddedNextToken, "__call__", interrupt)
    assert run("cut") == 130
    assert not (tmp_path / "cache").exists()
    assert run("cut", "cache", "--resume") == 0
    assert len(calls) == builtin.PLAN.steps
    tensors = (cached(tmp_path) / "model.safetensors").read_bytes()
    assert run("whole", "other") == 0
    assert metrics(tmp_path / "cut") == metrics(tmp_path / "whole")
    (other,) = (tmp_path / "other").glob("teacher-*")
    assert (other / "model.safetensors").read_bytes() == tensors


def test_one_entry_stands_for_all_the_padding(run, tmp_path):
    """The loss of the narrow model is that of the wide one which is saved."""
    assert run("run") == 0
    wide = AutoModelForCausalLM.from_pretrained(cached(tmp_path))
    narrow = AutoModelForCausalLM.from_pretrained(cached(tmp_path))
    narrow.resize_token_embeddings(301)
    tokens = torch.randint(300, (2, 9))
    batch = Batch(tokens[:, :-1], tokens[:, 1:])
    loss, _ = PaddedNextToken(400)(narrow, batch, batch)
    expected = F.cross_entropy(logits(wide, batch).flatten(0, 1), batch.labels.flatten())
    assert wide.vocab_size == 700
    torch.testing.assert_close(loss, expected)


@pytest.fixture
def cache(run, tmp_path, data):
    """`kd-kernels cache-teacher` on the built-in teacher."""
    common = ["cache-teacher", "--data", str(data), "--cache-dir", str(tmp_path / "cache")]
    return lambda out, *more: main([*common, "--out", str(tmp_path / out), *more])


def test_a_cache_of_the_built_in_teacher(run, cache, tmp_path, monkeypatch):
    seen = trainings(monkeypatch)
    assert cache("all.safetensors", "--top-k", "700") == 0
    assert cache("some.safetensors") == 0
    assert run("live", "cache", "--logits") == 0
    assert run("all", "cache", "--logits", "--teacher-cache", str(tmp_path / "all.safetensors")) == 0
    assert run("some", "cache", "--teacher-cache", str(tmp_path / "some.safetensors")) == 0
    assert len(seen) == 1
    assert metrics(tmp_path / "all") == metrics(tmp_path / "live")
    assert weights(tmp_path / "all") == weights(tmp_path / "live")
    assert metrics(tmp_path / "some")[-1]["eval"] == pytest.approx(metrics(tmp_path / "live")[-1]["eval"], rel=0.05)
    assert not list(tmp_path.glob("*.teacher"))


def test_an_interrupted_cache_goes_on_with_the_training_of_its_teacher(cache, tmp_path, monkeypatch, capsys):
    original = PaddedNextToken.__call__
    calls = []

    def interrupt(self, *args):
        calls.append(len(calls) + 1)
        if len(calls) == 7:
            signal.raise_signal(signal.SIGINT)
        return original(self, *args)

    monkeypatch.setattr(PaddedNextToken, "__call__", interrupt)
    assert cache("some.safetensors") == 130
    assert "stopped and saved after step 7 of 12; the same command goes on" in capsys.readouterr().err
    assert not (tmp_path / "some.safetensors").exists()
    assert cache("some.safetensors") == 0
    assert len(calls) == builtin.PLAN.steps
