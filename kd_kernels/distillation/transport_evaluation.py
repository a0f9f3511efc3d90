"""How good a student is on text that it was not trained on, in the terms of optimal transport and across tokenizers."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from kd_kernels.distillation.batches import Batch
from kd_kernels.distillation.cross_tokenizer import Comparison
from kd_kernels.distillation.losses import Loss, Sides
from kd_kernels.distillation.predictions import logits, summed_cross_entropy
from kd_kernels.distillation.spans import SpanBatch, Spans


@torch.no_grad()
def with_sinkd(
    evaluate: Callable[[], dict[str, float]],
    student: nn.Module,
    teacher: nn.Module,
    blocks: Tensor,
    batch_size: int,
    device: str,
    transport: Loss,
) -> dict[str, float]:
    """What `evaluate` finds, and the transport of SinKD per token, between the tokens of a batch."""
    found = evaluate()
    total = 0.0
    for rows in blocks.split(batch_size):
        batch = Batch.of(rows, device)
        loss, _ = transport(Sides(logits(student, batch), logits(teacher, batch), batch.labels, 1.0))
        total += loss.item()
    return found | {"sinkd": total / found["tokens"]}


@torch.no_grad()
def across_tokenizers(
    student: nn.Module, teacher: nn.Module, spans: Spans, batch_size: int, device: str, compare: Comparison
) -> dict[str, float]:
    """Cross-entropies on the text, in nats per token of each side and in bits per byte, and the loss per token.

    Bits per byte compare across tokenizers: both sides predict the same characters, and the ends of documents.
    """
    student.eval()
    tokens = teacher_tokens = 0
    nats = teacher_nats = 0.0
    sums: dict[str, float] = {}
    for rows in torch.arange(len(spans)).split(batch_size):
        batch = SpanBatch.of(spans[rows], device)
        q, p = logits(student, batch.student), logits(teacher, batch.teacher)
        tokens += batch.student.count()
        teacher_tokens += batch.teacher.count()
        nats += summed_cross_entropy(q, batch.student.labels).item()
        teacher_nats += summed_cross_entropy(p, batch.teacher.labels).item()
        for name, value in compare(q, p, *batch.masks()).items():
            sums[name] = sums.get(name, 0.0) + value.item()
    bits = math.log(2) * spans.sizes.sum().item()
    return {
        "tokens": tokens,
        "cross_entropy": nats / tokens,
        "bits_per_byte": nats / bits,
        **{name: value / tokens for name, value in sums.items()},
        "teacher_cross_entropy": teacher_nats / teacher_tokens,
        "teacher_bits_per_byte": teacher_nats / bits,
    }
