"""Text: documents of a file or of Python itself, the held-out split, and blocks of tokens."""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

# Stands for "no token" in the last block; as a label it is what losses ignore.
PADDING = -100


def builtin() -> list[str]:
    """The help topics of Python itself: English prose that every installation has.

    Topics repeat one another's paragraphs. Each stays only in the longest topic that has it, so that no part of a
    held-out topic can be read in another.
    """
    from pydoc_data.topics import topics

    seen: set[str] = set()
    documents = []
    for name in sorted(topics, key=lambda name: (-len(topics[name]), name)):
        paragraphs = [p for p in topics[name].split("\n\n") if p.strip() not in seen]
        seen.update(p.strip() for p in paragraphs)
        if paragraphs:
            documents.append("\n\n".join(paragraphs))
    return documents


def read(path: Path, render_chat: Callable[[list[dict]], str]) -> list[str]:
    """The documents of a text file, which is one, or of a JSONL file, one a line.

    Args:
        path: a line of `*.jsonl` is `{"text": ...}` or `{"messages": [...]}`; any other file is plain text.
        render_chat: the text of a list of messages.
    """
    if path.suffix != ".jsonl":
        return [path.read_text(encoding="utf-8")]
    documents = []
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            documents.append(_document(json.loads(line), render_chat))
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from None
    return documents


def _document(entry: object, render_chat: Callable[[list[dict]], str]) -> str:
    if isinstance(entry, dict) and isinstance(entry.get("text"), str):
        return entry["text"]
    if isinstance(entry, dict) and isinstance(entry.get("messages"), list):
        return render_chat(entry["messages"])
    raise ValueError('expected {"text": "..."} or {"messages": [...]}')


def split(documents: Sequence[str], holdout: float) -> tuple[list[str], list[str]]:
    """Documents to train on and documents held out, at most the fraction `holdout` of the text.

    The choice depends on the documents alone, so that runs of different seeds and losses compare. Where every document
    is larger than the share held out, the end of one is cut off.
    """
    unique = sorted(set(documents), key=lambda text: hashlib.sha256(text.encode()).digest())
    budget = int(holdout * sum(map(len, unique)))
    held: list[str] = []
    for text in unique:
        if 0 < len(text) <= budget - sum(map(len, held)):
            held.append(text)
    if held:
        return [text for text in documents if text not in set(held)], held
    if budget == 0:
        raise ValueError("there is too little text to hold some out")
    longest = max(unique, key=len)
    cut = longest.rfind("\n", 1, len(longest) - budget) + 1 or len(longest) - budget
    return [longest[:cut] if text == longest else text for text in documents], [longest[cut:]]


def blocks(documents: Sequence[str], tokenizer: PreTrainedTokenizerBase, length: int) -> Tensor:
    """The documents, each closed by EOS, as one stream cut into blocks `[n, length + 1]`.

    A block begins with the token that the one before ended with: each token but the first is predicted exactly once.
    """
    if tokenizer.eos_token_id is None:
        raise ValueError("the tokenizer has no EOS token to set documents apart")
    stream: list[int] = []
    for text in documents:
        stream += tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        stream.append(tokenizer.eos_token_id)
    if len(stream) < 2:
        raise ValueError("there is too little text to make a block of tokens")
    stream += [PADDING] * (-(len(stream) - 1) % length)
    return torch.tensor(stream, dtype=torch.int32).unfold(0, length + 1, length)


def digest(documents: Sequence[str]) -> str:
    """A hash of the documents in their order."""
    return hashlib.sha256(json.dumps(list(documents)).encode()).hexdigest()
