"""Batches, the schedule and the sums of a step."""

import pytest
import torch
from tiny import metrics, tokenizer

from kd_kernels.distillation import text
from kd_kernels.distillation.batches import Batch, Batches
from kd_kernels.distillation.evaluation import sample
from kd_kernels.distillation.loop import Plan
from kd_kernels.distillation.objective import Distillation


def test_accumulation_changes_memory_not_the_steps(run, tmp_path, data):
    """Parts of a step hold different numbers of tokens: the last block is mostly padding."""
    for parts in (1, 4):
        assert run(out=tmp_path / str(parts), accumulate=parts, steps=10, seq_len=100, ce_weight=0.5) == 0
    whole, split = (metrics(tmp_path / str(parts)) for parts in (1, 4))
    assert len({r["tokens"] for r in whole if "loss" in r}) > 1
    for a, b in zip(whole, split, strict=True):
        a, b = a.get("eval", a), b.get("eval", b)
        assert a.pop("grad_norm", 0) == pytest.approx(b.pop("grad_norm", 0), rel=1e-3)
        assert a == pytest.approx(b, rel=1e-5)


def test_each_epoch_sees_every_block_once_in_an_order_of_its_own():
    batches = Batches(torch.zeros(10, 5), 4, seed=3, device="cpu")
    rows = [row for step in range(5) for row in batches.rows(step)]
    assert sorted(rows[:10]) == sorted(rows[10:]) == list(range(10))
    assert rows[:10] != rows[10:]
    assert Batches(torch.zeros(10, 5), 4, seed=3, device="cpu").rows(3) == batches.rows(3)
    assert Batches(torch.zeros(10, 5), 4, seed=4, device="cpu").rows(3) != batches.rows(3)


def test_blocks_predict_every_token_once():
    words = tokenizer()
    documents = ["w1 w2 w3", "w4 w5 w6 w7"]
    blocks = text.blocks(documents, words, 3)
    stream = words("w1 w2 w3 <eos> w4 w5 w6 w7 <eos>")["input_ids"]
    batch = Batch.of(blocks, "cpu")
    assert batch.labels[batch.labels >= 0].tolist() == stream[1:]
    assert batch.count() == len(stream) - 1
    assert batch.input_ids[:, 1:].tolist() == batch.labels[:, :-1].clamp(min=0).tolist()


def test_held_out_blocks_are_never_trained_on(run, tmp_path, monkeypatch):
    """Every document has a word of its own, so tokens tell where a batch comes from."""
    path = tmp_path / "documents.jsonl"
    path.write_text("".join(f'{{"text": "{f"w{i} " * 20}"}}\n' for i in range(40)))
    trained, evaluated = set(), set()
    original_step, original_blocks = Distillation.__call__, text.blocks

    def spy(self, model, part, whole):
        (batch,) = part.batches.values()
        trained.update(batch.input_ids.flatten().tolist() + batch.labels.flatten().tolist())
        return original_step(self, model, part, whole)

    def blocks(documents, *args):
        made = original_blocks(documents, *args)
        if len(documents) < 20:
            evaluated.update(made.flatten().tolist())
        return made

    monkeypatch.setattr(Distillation, "__call__", spy)
    monkeypatch.setattr(text, "blocks", blocks)
    assert run(data=path, steps=30, eval_blocks=1000) == 0
    separators = {0, -100}
    assert len(trained - separators) == 36
    assert len(evaluated - separators) == 4
    assert trained & evaluated <= separators


@pytest.mark.parametrize("holdout", [0.05, 0.1, 0.3])
def test_the_built_in_text_holds_out_whole_topics_that_no_other_quotes(holdout):
    documents = text.builtin()
    training, held_out = text.split(documents, holdout)
    assert sorted(training + held_out) == sorted(documents)
    share = sum(map(len, held_out)) / sum(map(len, documents))
    assert 0.9 * holdout < share <= holdout
    paragraphs = {p.strip() for text in training for p in text.split("\n\n")}
    assert not paragraphs & {p.strip() for text in held_out for p in text.split("\n\n")}
    assert sum(map(len, documents)) > 300_000


def test_copies_of_a_held_out_document_are_not_trained_on():
    documents = [f"document {i % 10}" for i in range(100)]
    training, held_out = text.split(documents, 0.3)
    assert held_out
    assert not set(training) & set(held_out)


def test_too_little_text_is_refused():
    for documents in ([], [""], ["abc"]):
        with pytest.raises(ValueError, match="too little text"):
            text.split(documents, 0.1)


def test_a_sample_is_spread_over_the_blocks():
    blocks = torch.arange(10)[:, None]
    assert sample(blocks, 4).flatten().tolist() == [0, 2, 5, 7]
    assert sample(blocks, 100).flatten().tolist() == list(range(10))


def test_the_rate_warms_up_and_falls_to_nothing():
    plan = Plan(steps=100, lr=1.0, warmup=4, weight_decay=0.0, clip=1.0, seed=0)
    rates = [plan.rate(step) for step in range(100)]
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert 0 < rates[-1] < 1e-3
