"""How good a student is on text that it was not trained on."""

import dataclasses
from collections import Counter

import torch
from torch import Tensor, nn

import kd_kernels
from kd_kernels import Head
from kd_kernels.distillation.batches import Batch
from kd_kernels.distillation.predictions import Form, summed_kl_from_text
from kd_kernels.distillation.text import PADDING

# Tokens projected at a time where the form does not say: fewer take as long, for the weights are read; logits of more
# are memory that a CPU's allocator gets anew each time, which costs what larger products gain.
_ROWS = 32


def sample(blocks: Tensor, n: int) -> Tensor:
    """At most n of the blocks, spread evenly."""
    n = min(n, len(blocks))
    return blocks[torch.arange(n) * len(blocks) // n]


@torch.no_grad()
def evaluate(
    student: nn.Module, teacher: nn.Module, blocks: Tensor, batch_size: int, device: str, form: Form
) -> dict[str, float]:
    """Means per token, in nats, at temperature 1: cross-entropies on the text, KL divergences between the models."""
    student.eval()
    sums, tokens = Counter(), 0
    for rows in blocks.split(batch_size):
        batch = Batch.of(rows, device)
        tokens += batch.count()
        sums.update(_sums(form.predict(student, batch), form.predict(teacher, batch), batch.labels.flatten(), form))
    return {"tokens": tokens, **{name: value / tokens for name, value in sums.items()}}


def _sums(q: Tensor | Head, p: Tensor | Head, labels: Tensor, form: Form) -> dict[str, float]:
    """Sums over the tokens of a batch."""
    sums = Counter()
    size = _chunk_rows(form, q, p)
    for begin in range(0, len(labels), size):
        chunk = slice(begin, begin + size)
        sums.update(_sums_of_chunk(_logits(q, chunk), _logits(p, chunk), labels[chunk]))
    return sums


def _sums_of_chunk(q: Tensor, p: Tensor, labels: Tensor) -> dict[str, float]:
    """The same of a chunk, all from one projection."""
    options = {"labels": labels, "ignore_index": PADDING, "reduction": "sum", "vocab": "common"}
    sums = {
        "cross_entropy": summed_kl_from_text(q, labels),
        "forward_kl": kd_kernels.divergence(q, p, "forward_kl", **options),
        "reverse_kl": kd_kernels.divergence(q, p, "reverse_kl", **options),
        "teacher_cross_entropy": summed_kl_from_text(p, labels),
    }
    return {name: value.item() for name, value in sums.items()}


def _chunk_rows(form: Form, q: Tensor | Head, p: Tensor | Head) -> int:
    """Tokens whose logits are taken at a time."""
    if form.chunk_tokens is not None:
        return form.chunk_tokens
    if form.memory_budget is None or form.logits:
        return _ROWS
    row = sum(len(head.weight) * head.hidden.itemsize for head in (q, p))
    return min(_ROWS, max(1, form.memory_budget // (2 * row)))  # scale and softcap take copies


def _logits(prediction: Tensor | Head, rows: slice) -> Tensor:
    """`[C, V]` of some of all tokens."""
    if isinstance(prediction, Tensor):
        return prediction.flatten(0, 1)[rows]
    return dataclasses.replace(prediction, hidden=prediction.hidden.flatten(0, 1)[rows]).logits()
