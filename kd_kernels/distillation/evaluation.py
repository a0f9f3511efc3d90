"""How good a student is on text that it was not trained on."""

import dataclasses

import torch
from torch import Tensor, nn

import kd_kernels
from kd_kernels import Head
from kd_kernels.distillation.batches import Batch
from kd_kernels.distillation.objective import Form, summed_kl_from_text
from kd_kernels.distillation.text import PADDING

_ROWS = 256  # tokens projected at a time, where the form does not say


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
    sums = {"cross_entropy": 0.0, "forward_kl": 0.0, "reverse_kl": 0.0, "teacher_cross_entropy": 0.0}
    tokens = 0
    for rows in blocks.split(batch_size):
        batch = Batch.of(rows, device)
        q, p = form.predict(student, batch), form.predict(teacher, batch)
        labels = batch.labels.flatten()
        tokens += batch.count()
        size = _chunk_rows(form, q, p)
        for chunk in (slice(i, i + size) for i in range(0, len(labels), size)):
            for name, value in _summed(_logits(q, chunk), _logits(p, chunk), labels[chunk]).items():
                sums[name] += value.item()
    means = {name: value / tokens for name, value in sums.items()}
    return {"tokens": tokens, **means}


def _summed(q: Tensor, p: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Sums over the tokens of a chunk, all from one projection."""
    divergences = {
        kind: kd_kernels.divergence(q, p, kind, labels=labels, ignore_index=PADDING, reduction="sum", vocab="common")
        for kind in ("forward_kl", "reverse_kl")
    }
    return {
        "cross_entropy": summed_kl_from_text(q, labels),
        "teacher_cross_entropy": summed_kl_from_text(p, labels),
        **divergences,
    }


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
