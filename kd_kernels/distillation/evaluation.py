"""How good a student is on text that it was not trained on."""

import torch
from torch import Tensor, nn

import kd_kernels
from kd_kernels.distillation.batches import Batch
from kd_kernels.distillation.objective import Form
from kd_kernels.distillation.text import PADDING


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
        tokens += batch.count()
        sums["cross_entropy"] += form.summed_cross_entropy(q, batch.labels).item()
        sums["teacher_cross_entropy"] += form.summed_cross_entropy(p, batch.labels).item()
        for kind in ("forward_kl", "reverse_kl"):
            value = kd_kernels.divergence(
                q, p, kind, labels=batch.labels, ignore_index=PADDING, reduction="sum", vocab="common", **form.options()
            )
            sums[kind] += value.item()
    means = {name: value / tokens for name, value in sums.items()}
    return {"tokens": tokens, **means}
