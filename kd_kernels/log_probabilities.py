"""Log-probabilities of given entries, and entropies: `kd_kernels.logprobs`."""

import torch
from torch import Tensor

from kd_kernels import arguments
from kd_kernels.head import Head
from kd_kernels.losses import divergence, entropy
from kd_kernels.top_k import TopK
from kd_kernels.transport.arguments import row_mask


def logprobs(
    student: Tensor | Head,
    ids: Tensor,
    *,
    temperature: float = 1.0,
    mask: Tensor | None = None,
    return_entropy: bool = False,
    vocab: str | int = "strict",
    backend: str = "auto",
    chunk_tokens: int | None = None,
    memory_budget: int | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """log q of one entry of each row, q = softmax(student / T), with its gradient; on request the entropy of q too.

    From a `Head` logits exist a chunk at a time; from logits, the gradient is the only other tensor of their size. Any
    gradient that comes from above, row by row, is exact: it is computed in backward.

    Args:
        student: logits `[..., V]`, float32, bfloat16, float16 or float64, or a `Head`.
        ids: the entry of each row, integers `[...]`. Where negative there is none: 0, without gradient.
        temperature: T.
        mask: rows that count, bool or integer `[...]`. The others are not read, and give 0.
        return_entropy: return also -sum q log q, in nats, differentiable; from a `Head` that projects a second time.
        vocab: a number n normalises over the first n entries; "strict" and "common" over all.
        backend: as for `divergence`.
        chunk_tokens: as for `divergence`.
        memory_budget: as for `divergence`.

    Returns:
        `[...]`, float32, or float64 for float64 logits; with `return_entropy` a pair (log q, entropy).

    Raises:
        ValueError: a shape, range, device or name that does not fit, or a memory budget that nothing fits.
        TypeError: a dtype or type that does not fit.
        RuntimeError: a backend that is not available in this installation.
    """
    arguments.dense_side("student", student)
    rows = arguments.rows_of(student)
    columns = arguments.vocabulary(vocab, *arguments.vocabularies(student, student))
    arguments.entries("ids", ids, rows, columns)
    if not arguments.is_number(temperature):
        raise TypeError(f"temperature must be a number, got {temperature!r}")
    options = {
        "temperature": temperature, "mask": row_mask("mask", mask, rows), "reduction": "none", "vocab": columns,
        "backend": backend, "chunk_tokens": chunk_tokens, "memory_budget": memory_budget,
    }  # fmt: skip
    certain = torch.zeros_like(ids, dtype=torch.float64 if rows.dtype == torch.float64 else torch.float32)
    # A distribution that is certain of an entry: its KL is the cross-entropy.
    result = -divergence(student, TopK(ids[..., None], certain[..., None], "truncate"), **options)
    if not return_entropy:
        return result
    return result, entropy(student, columns, **options)
