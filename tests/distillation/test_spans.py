"""Spans of characters: the same text on both sides, each in its own tokens."""

import random
import unicodedata
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import character_tokenizer, sentence, tokenizer
from transformers import Qwen2Tokenizer

from kd_kernels.distillation import text
from kd_kernels.distillation.spans import SpanBatch, SpanBatches, Spans, cut
from kd_kernels.distillation.text import PADDING

TEXT = "\n\n".join(text.builtin()[-40:])


@cache
def learned(tokens: int) -> Qwen2Tokenizer:
    """Byte pairs, of which every text can be made."""
    return Qwen2Tokenizer().train_new_from_iterator([TEXT], tokens, show_progress=False)


def sides() -> tuple[Qwen2Tokenizer, Qwen2Tokenizer]:
    return learned(300), learned(600)


def encode(span: str, last: bool) -> tuple[list[int], ...]:
    return tuple(tok(span, add_special_tokens=False)["input_ids"] + [tok.eos_token_id] * last for tok in sides())


ALPHABET = st.one_of(st.characters(), st.sampled_from(" \n\t\r  e\u0301\u200d😀語"))


@settings(max_examples=60, deadline=None)
@given(st.text(ALPHABET, max_size=120), st.integers(20, 40))
def test_spans_put_together_are_the_text(document, length):
    found = list(cut(document, encode, length))
    assert "".join(span for span, _ in found) == document
    for number, (span, tokens) in enumerate(found, start=1):
        last = number == len(found)
        assert max(map(len, tokens)) <= length
        for tok, ids in zip(sides(), tokens, strict=True):
            assert ids == tok(span)["input_ids"] + [tok.eos_token_id] * last
            body = ids[:-1] if last else ids
            assert tok.decode(body) == unicodedata.normalize("NFC", span)  # as this tokenizer reads a text


@cache
def short_words() -> list[str]:
    return [x for x in TEXT.split()[:500] if max(map(len, encode(f"\n\n  {x}", True))) <= 12]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(12, 60))
def test_words_stay_whole_where_they_fit(seed, length):
    words = short_words()
    generator = random.Random(seed)
    document = "".join(generator.choice([" ", "\n", "\n\n  "]) + generator.choice(words) for _ in range(50))
    spans = [span for span, _ in cut(document, encode, length)]
    assert "".join(spans) == document
    assert [word for span in spans for word in span.split()] == document.split()
    assert all(span[0].isspace() for span in spans)


def test_a_text_without_spaces_is_cut_between_characters():
    document = "語" * 50 + "e\u0301" * 50
    spans = [span for span, _ in cut(document, encode, 20)]
    assert "".join(spans) == document
    assert not any(unicodedata.combining(span[0]) for span in spans)


def test_a_length_that_no_character_fits_into_is_refused():
    with pytest.raises(ValueError, match="'語' is 3 tokens, a block has 2: pass a larger --seq-len"):
        list(cut("語語", encode, 2))


def test_spans_fill_their_length():
    tokens = [max(map(len, ids)) for _, ids in cut(TEXT, encode, 64)]
    assert sum(tokens) > 0.75 * 64 * len(tokens)


def test_rows_are_the_texts_of_both_sides():
    documents = [TEXT[:500], "", TEXT[500:530]]
    spans = Spans.of(documents, *sides(), 32)
    assert spans.sizes.sum() == sum(len(x.encode()) for x in documents)
    for blocks, tok in ((spans.student, sides()[0]), (spans.teacher, sides()[1])):
        rows = [row[row != PADDING].tolist() for row in blocks]
        assert all(row[0] == tok.eos_token_id for row in rows)
        assert sum(row[-1] == tok.eos_token_id for row in rows) == 2  # the ends of two documents
        assert "".join(tok.decode(row[1:], skip_special_tokens=True) for row in rows) == documents[0] + documents[2]
    assert (spans.student != PADDING).sum() > (spans.teacher != PADDING).sum()


def test_masks_are_where_a_token_is_predicted():
    spans = Spans.of([sentence(9, 0), sentence(4, 1)], character_tokenizer(), tokenizer(), 14)
    batch = SpanBatch.of(spans[torch.arange(len(spans))], "cpu")
    for side, mask, blocks in zip(
        (batch.student, batch.teacher), batch.masks(), (spans.student, spans.teacher), strict=True
    ):
        for ids, labels, counts, row in zip(side.input_ids, side.labels, mask, blocks, strict=True):
            row = row[row != PADDING]
            n = len(row) - 1
            assert counts.tolist() == [True] * n + [False] * (len(counts) - n)
            assert labels[:n].tolist() == row[1:].tolist()
            assert ids[: n + 1].tolist() == row.tolist()[: len(ids)]
    assert batch.student.labels.shape[1] != batch.teacher.labels.shape[1]
    assert batch.count() == int(batch.masks()[0].sum())
    assert [len(part.student.labels) for part in batch.parts(len(spans))] == [1] * len(spans)


def test_a_span_that_one_side_drops_is_left_out():
    document = "w1 w2" + " " * 30
    spans = Spans.of([document], character_tokenizer(), tokenizer(), 10)
    assert spans.sizes.sum() < len(document)
    assert (spans.teacher != PADDING).sum(1).min() >= 2


def test_batches_pass_over_all_spans():
    spans = Spans.of([sentence(40, seed) for seed in range(3)], character_tokenizer(), tokenizer(), 20)
    batches = SpanBatches(spans, 1, 0, "cpu")
    seen = [int(batches.at(step).sizes) for step in range(len(spans))]
    assert sorted(seen) == sorted(spans.sizes.tolist())


def test_a_tokenizer_without_eos_is_named():
    plain = character_tokenizer()
    plain.eos_token = None
    with pytest.raises(ValueError, match="the student's tokenizer has no EOS token"):
        Spans.of(["w1"], plain, tokenizer(), 10)
