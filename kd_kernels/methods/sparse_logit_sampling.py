"""Sparse logit sampling: a few entries drawn from the teacher instead of its likeliest."""

import math
from typing import Any

import torch
from torch import Tensor

from kd_kernels import Head, TopK, divergence
from kd_kernels import arguments as checks
from kd_kernels.methods import arguments
from kd_kernels.methods.by_chunk import constant_rows
from kd_kernels.methods.counting import row_options
from kd_kernels.transport.arguments import count, row_mask

_ENTRIES = 1 << 24  # of a chunk of logits, and of their probabilities in float32


def draw_entries(
    teacher: Tensor | Head,
    draws: int = 50,
    *,
    temperature: float = 1.0,
    proposal_temperature: float | None = None,
    normalize: bool = True,
    mask: Tensor | None = None,
    vocab: int | None = None,
    generator: torch.Generator | None = None,
) -> TopK:
    """Entries drawn from the teacher, with replacement, as a teacher of their own (Anshumann et al. 2025).

    With c_v the draws of entry v among n from a proposal r, its weight is t_v = c_v / n p_v / r_v. Its expectation is
    p_v, and so the student's gradient, sum(t) q - t, is q - p on average; that of the K likeliest is not.

    Args:
        teacher: logits `[..., V]` or a `Head`. Probabilities exist a chunk of rows at a time.
        draws: n for each row.
        temperature: T of p = softmax(teacher / T).
        proposal_temperature: of r, likewise; None for that of p, where all draws weigh alike.
        normalize: divide the weights of a row by their sum, as published. Another proposal than p is then unbiased in
            the limit of many draws alone; without, always. Where r is p the sum is 1.
        mask: rows that count, bool or integer `[...]`. The others get no entries, and are not read.
        vocab: draw from the first `vocab` entries alone.
        generator: of random numbers, on the teacher's device.

    Returns:
        Distinct ids in ascending order and log t, `[..., K]`, K the most that a row has, padded with id -1; with tail
        "truncate", which is what `sparse_logit_sampling` wants. To be kept and used in every epoch.

    Raises:
        ValueError: a shape, range or device that does not fit.
        TypeError: a dtype or type that does not fit.
    """
    checks.dense_side("teacher", teacher)
    rows = checks.rows_of(teacher)
    size = checks.vocabularies(teacher, teacher)[0]
    columns = size if vocab is None else checks.vocabulary(vocab, size, size)
    n = count("draws", draws)
    arguments.flag("normalize", normalize)
    if not checks.is_number(temperature):
        raise TypeError(f"temperature must be a number, got {temperature!r}")
    t, t_proposal = checks.temperatures(
        (temperature, temperature if proposal_temperature is None else proposal_temperature)
    )
    counted = row_mask("mask", mask, rows)
    total = rows.shape[:-1].numel()
    index = torch.arange(total, device=rows.device)
    if counted is not None:
        index = index[counted.reshape(-1)]
    ids = torch.full((total, n), -1, dtype=torch.int64, device=rows.device)
    logprobs = torch.full((total, n), -math.inf, device=rows.device)
    logits = constant_rows(teacher)
    step = max(1, _ENTRIES // columns)
    for start in range(0, len(index), step):
        part = index[start : start + step]
        x = logits(part)[:, :columns].float()
        ids[part], logprobs[part] = _draw(x, n, t, t_proposal, normalize, generator)
    width = int((ids >= 0).sum(1).max()) if total else 0  # draws that fell on the same entry share a slot
    shape = (*rows.shape[:-1], max(1, width))
    return TopK(*(x[:, : shape[-1]].reshape(shape) for x in (ids, logprobs)), "truncate")


def _draw(
    x: Tensor, n: int, t: float, t_proposal: float, normalize: bool, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """Of logits (C, V): distinct ids (C, n), padded with -1, and the logarithms of their weights."""
    proposal = (x / t_proposal).softmax(1)
    drawn = torch.multinomial(proposal, n, replacement=True, generator=generator).sort(1).values
    first = torch.ones_like(drawn, dtype=torch.bool)
    first[:, 1:] = drawn[:, 1:] != drawn[:, :-1]
    slot = first.cumsum(1) - 1
    ids = torch.full_like(drawn, -1).scatter_(1, slot, drawn)
    weights = torch.zeros_like(drawn).scatter_add_(1, slot, torch.ones_like(drawn)).log() - math.log(n)
    if t_proposal != t:
        log_p = x.gather(1, ids.clamp(min=0)) / t - (x / t).logsumexp(1, keepdim=True)
        weights = weights + log_p - proposal.gather(1, ids.clamp(min=0)).log()
        weights = weights.masked_fill(ids < 0, -math.inf)
        if normalize:
            weights = weights - weights.logsumexp(1, keepdim=True)
    return ids, weights


def sparse_logit_sampling(
    student: Tensor | Head,
    teacher: Tensor | Head | TopK,
    *,
    draws: int = 50,
    temperature: float = 1.0,
    proposal_temperature: float | None = None,
    normalize: bool = True,
    generator: torch.Generator | None = None,
    **options: Any,
) -> Tensor:
    """sum_v t_v log(t_v / q_v) over entries drawn from the teacher (Anshumann et al. 2025, arXiv 2503.16870).

    q is the student's softmax of the whole vocabulary; t are weights of `draw_entries`. On average over draws the
    gradient is that of KL(p, q).

    Args:
        student: logits `[..., V]` or a `Head`.
        teacher: what `draw_entries` gave, of the same rows, at the same temperature; or logits or a `Head`, from which
            is drawn now, in every call again.
        draws: as for `draw_entries`, where it is drawn now.
        temperature: T of student and teacher.
        proposal_temperature: as for `draw_entries`.
        normalize: as for `draw_entries`.
        generator: as for `draw_entries`.
        **options: `mask`, `labels`, `ignore_index`, `reduction`, `normalizer`, `vocab`, `backend`, `chunk_tokens` and
            `memory_budget`, as for `divergence`; `reduction` may be "sequence_mean" too.

    Returns:
        float32, or float64 for float64 logits.

    Raises:
        As `divergence`.
    """
    options = row_options(student, options)
    if not checks.is_number(temperature):
        raise TypeError(f"temperature must be a number, got {temperature!r}")
    if isinstance(teacher, TopK):
        if teacher.tail != "truncate":
            raise ValueError(f"tail of the teacher must be 'truncate', as draw_entries makes it, got {teacher.tail!r}")
    else:
        checks.sides(student, teacher)
        sizes = checks.vocabularies(student, teacher)
        options["vocab"] = checks.vocabulary(options.get("vocab", "strict"), *sizes)
        teacher = draw_entries(
            teacher, draws, temperature=temperature, proposal_temperature=proposal_temperature, normalize=normalize,
            mask=None if options["mask"] is None else options["mask"] != 0, vocab=options["vocab"], generator=generator,
        )  # fmt: skip
    return divergence(student, teacher, "forward_kl", temperature=temperature, **options)
