"""The same text on both sides, where teacher and student split it into tokens of their own."""

import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

from kd_kernels.distillation.batches import Batch, Batches
from kd_kernels.distillation.text import PADDING

# What a span is at most, in characters a token: a line of spaces is one token.
WIDEST = 16

Tokens = tuple[list[int], ...]  # of each side


@dataclass(frozen=True)
class Spans:
    """Spans of characters, each as the tokens of both sides.

    A row is a token to start from, those of the span, and EOS where its document ends; then padding. So every token of
    the text is predicted, and both sides predict the same characters.

    Attributes:
        student: `[n, L + 1]` int32.
        teacher: `[n, L' + 1]` int32.
        sizes: `[n]` int64, bytes of the spans in UTF-8.
    """

    student: Tensor
    teacher: Tensor
    sizes: Tensor

    @classmethod
    def of(
        cls,
        documents: Sequence[str],
        student: PreTrainedTokenizerBase,
        teacher: PreTrainedTokenizerBase,
        length: int,
    ) -> "Spans":
        """The documents, cut where neither side has more than `length` tokens, EOS included.

        A span that one side has no token for, such as spaces that it drops, is left out.
        """
        tokenizers = student, teacher
        for side, tokenizer in (("student", student), ("teacher", teacher)):
            if tokenizer.eos_token_id is None:
                raise ValueError(f"the {side}'s tokenizer has no EOS token to set documents apart")
        rows: list[list[Tensor]] = [[], []]
        sizes = []
        for document in documents:
            for span, tokens in cut(document, partial(_encode, tokenizers), length):
                if not all(tokens):
                    continue
                sizes.append(len(span.encode()))
                for side, tokenizer, ids in zip(rows, tokenizers, tokens, strict=True):
                    side.append(torch.tensor([_start(tokenizer), *ids], dtype=torch.int32))
        if not sizes:
            raise ValueError("there is too little text to make a span of tokens")
        blocks = [pad_sequence(side, batch_first=True, padding_value=PADDING) for side in rows]
        return cls(*blocks, torch.tensor(sizes))

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, rows: Tensor | Sequence[int]) -> "Spans":
        return Spans(self.student[rows], self.teacher[rows], self.sizes[rows])


@dataclass(frozen=True)
class SpanBatch:
    """A batch of spans.

    Attributes:
        student: `[B, L]`, padded at the end to the longest.
        teacher: `[B, L']`, likewise.
        sizes: bytes of the spans.
    """

    student: Batch
    teacher: Batch
    sizes: Tensor

    @classmethod
    def of(cls, spans: Spans, device: str) -> "SpanBatch":
        return cls(*(Batch.of(_trim(blocks), device) for blocks in (spans.student, spans.teacher)), spans.sizes)

    def count(self) -> int:
        """Number of tokens that the student has to predict."""
        return self.student.count()

    def masks(self) -> tuple[Tensor, Tensor]:
        """`[B, L]` and `[B, L']` bool: where the student and the teacher have a token to predict."""
        return self.student.labels != PADDING, self.teacher.labels != PADDING

    def parts(self, n: int) -> list["SpanBatch"]:
        """n batches of equal size."""
        parts = self.student.parts(n), self.teacher.parts(n), self.sizes.tensor_split(n)
        return [SpanBatch(*part) for part in zip(*parts, strict=True)]


class SpanBatches(Batches):
    """Endless batches of spans, each epoch in an order of its own."""

    def at(self, step: int, model: nn.Module | None = None) -> SpanBatch:
        return SpanBatch.of(self._blocks[self.rows(step)], self._device)


def cut(document: str, encode: Callable[[str, bool], Tokens], length: int) -> Iterator[tuple[str, Tokens]]:
    """Spans that put together are the document, as long as a number of tokens allows, and their tokens.

    Cuts go before white space, and between characters where a span has none.

    Args:
        document: the text.
        encode: the tokens of a span, of each side; its second argument says whether the document ends with it.
        length: the most tokens that a side may have.
    """
    start, width = 0, 4 * length
    while start < len(document):
        stop = _boundary(document, start, start + width, start + WIDEST * length)
        tokens = encode(document[start:stop], stop == len(document))
        while (longest := max(map(len, tokens))) > length:
            if stop - start == 1:
                raise ValueError(
                    f"{document[start]!r} is {longest} tokens, a block has {length}: pass a larger --seq-len"
                )
            stop = _boundary(document, start, start + (stop - start) * length // longest, stop)
            tokens = encode(document[start:stop], stop == len(document))
        yield document[start:stop], tokens
        # Text is much like the text before it.
        width = min((stop - start) * length // max(longest, 1), WIDEST * length)
        start = stop


def _boundary(document: str, start: int, aim: int, limit: int) -> int:
    """Where to cut after `start`: at `aim` or as little before it as can be, and before `limit`.

    A word that begins the span stays whole if it ends before `limit`.
    """
    if aim >= len(document):
        return len(document)
    aim = max(aim, start + 1)
    for place in (*range(aim, start, -1), *range(aim + 1, min(limit, len(document) + 1))):
        if place == len(document) or (document[place].isspace() and not document[place - 1].isspace()):
            return place
    for place in range(aim, start, -1):
        if not unicodedata.combining(document[place]):  # an accent belongs to the letter before
            return place
    return aim


def _encode(tokenizers: Sequence[PreTrainedTokenizerBase], span: str, last: bool) -> Tokens:
    return tuple(
        tokenizer(span, add_special_tokens=False, verbose=False)["input_ids"] + [tokenizer.eos_token_id] * last
        for tokenizer in tokenizers
    )


def _start(tokenizer: PreTrainedTokenizerBase) -> int:
    return tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id


def _trim(blocks: Tensor) -> Tensor:
    """Without the columns that hold padding alone."""
    return blocks[:, : int((blocks != PADDING).sum(1).max())]
