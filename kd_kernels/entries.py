"""The entries of the vocabulary that the tokens of a sequence are likeliest to hold, and their log-probabilities.

Everything goes a chunk of rows at a time: of `[B, L, V]` tensors there are the logits and, in the end, their gradient.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from kd_kernels.reduction import sum_dtype

# Logits of a chunk, which exists a few times over: what the cache of a CPU holds, and what keeps a GPU busy.
_ELEMENTS = 1 << 18
_ELEMENTS_ON_GPU = 1 << 24

# Added to the deviation of a row that logits are divided by.
DEVIATION_OFFSET = 1e-4


class Tokens(NamedTuple):
    """The tokens of each sequence that count."""

    positions: Tensor  # (B, T): where the t-th stands, anything valid and distinct beyond the last
    lengths: Tensor  # (B,): how many there are


class Chunk(NamedTuple):
    """Some tokens of one sequence."""

    sequence: int
    tokens: slice
    positions: Tensor  # (c,)
    valid: Tensor | None  # (c, 1) bool: those that count; None: all


def likeliest(
    logits: Tensor,  # (B, L, V)
    tokens: Tokens,
    inverse_temperatures: Sequence[float],  # R of them; entries are ranked at the first
    k: int,
    standardise: bool,
    shared: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The k entries of the largest sum of probabilities over the tokens of a sequence, or of all with `shared`.

    -> log-probabilities (R, B, T, k), -inf for tokens that do not count; ids (B, k) in descending order, of equal sums
    the smaller id first; statistics (B, T, R + 2): log-sum-exp at each temperature, mean and deviation of the logits.
    """
    batch, _, vocabulary = logits.shape
    count, real = tokens.positions.shape[1], sum_dtype(logits.dtype)
    ids = tokens.positions.new_zeros((batch, k))
    statistics = logits.new_zeros((batch, count, len(inverse_temperatures) + 2), dtype=real)
    mass = logits.new_zeros(vocabulary, dtype=real)
    for b in range(batch):
        for chunk in _chunks(b, tokens, vocabulary):
            x, mean, deviation = _standardised(_rows(logits, chunk, real), standardise)
            log_sums = [(x * rate).logsumexp(1, keepdim=True) for rate in inverse_temperatures]
            statistics[b, chunk.tokens] = torch.cat([*log_sums, mean, deviation], 1)
            x.mul_(inverse_temperatures[0]).sub_(log_sums[0]).exp_()
            mass += _where_valid(chunk, x).sum(0)
        if not shared:
            ids[b] = _largest(mass, k)
            mass.zero_()
    if shared:
        ids[:] = _largest(mass, k)
    sequence = torch.arange(batch, device=logits.device)[:, None, None]
    chosen = logits[sequence, tokens.positions[:, :, None], ids[:, None, :]].to(real)
    chosen = chosen / _divisor(statistics[:, :, -1:], standardise)
    valid = (torch.arange(count, device=logits.device) < tokens.lengths[:, None])[:, :, None]
    log_probabilities = [
        torch.where(valid, chosen * rate - statistics[:, :, r, None], -torch.inf)
        for r, rate in enumerate(inverse_temperatures)
    ]
    return torch.stack(log_probabilities), ids, statistics


def likeliest_backward(
    upstream: Tensor,  # (R, B, T, k)
    logits: Tensor,  # (B, L, V)
    tokens: Tokens,
    ids: Tensor,  # (B, k)
    statistics: Tensor,  # (B, T, R + 2)
    inverse_temperatures: Sequence[float],
    standardise: bool,
) -> Tensor:
    """The gradient of the logits, of their dtype, from that of the log-probabilities; 0 at tokens that do not count.

    dL/dx_v = sum over temperatures of (u_v - p_v sum_k u_k) / T, u_v = 0 outside the k entries. Where x = z / s with
    s = deviation + offset, dL/dz = dL/dx / s - (z - mean) <dL/dx, z> / ((V - 1) deviation s^2).
    """
    vocabulary, real = logits.shape[2], statistics.dtype
    gradient = torch.zeros_like(logits, memory_format=torch.contiguous_format)
    for b in range(logits.shape[0]):
        for chunk in _chunks(b, tokens, vocabulary):
            z = _rows(logits, chunk, real)
            log_sums = statistics[b, chunk.tokens]
            mean, deviation = log_sums[:, -2:-1], log_sums[:, -1:]
            divisor = _divisor(deviation, standardise)
            dx = torch.zeros_like(z)
            for r, rate in enumerate(inverse_temperatures):
                u = upstream[r, b, chunk.tokens].to(real) * rate
                probabilities = (z * (rate / divisor)).sub_(log_sums[:, r, None]).exp_()
                dx -= probabilities.mul_(u.sum(1, keepdim=True))
                dx.scatter_add_(1, ids[b].expand_as(u), u)
            if standardise:
                finite = torch.where(z == -torch.inf, 0, z)
                others = (z != -torch.inf).sum(1, keepdim=True) - 1
                slope = (dx * finite).sum(1, keepdim=True) / (others * deviation * divisor.square())
                slope = torch.where(deviation > 0, slope, 0)
                dx = dx / divisor - torch.where(z == -torch.inf, 0, z - mean) * slope
            gradient[b].index_copy_(0, chunk.positions, _where_valid(chunk, dx).to(logits.dtype))
    return gradient


def _chunks(b: int, tokens: Tokens, vocabulary: int) -> Iterator[Chunk]:
    """The tokens of a sequence a chunk at a time; without those that do not count, where looking costs nothing."""
    device = tokens.lengths.device
    looking = _looking_is_free(device)
    count = int(tokens.lengths[b]) if looking else tokens.positions.shape[1]
    rows = max(1, (_ELEMENTS if device.type == "cpu" else _ELEMENTS_ON_GPU) // vocabulary)
    for start in range(0, count, rows):
        part = slice(start, min(start + rows, count))
        valid = None if looking else (torch.arange(part.start, part.stop, device=device) < tokens.lengths[b])[:, None]
        yield Chunk(b, part, tokens.positions[b, part], valid)


def _looking_is_free(device: torch.device) -> bool:
    return device.type == "cpu"


def _rows(logits: Tensor, chunk: Chunk, real: torch.dtype) -> Tensor:
    """(c, V) of its own; 0 where a token does not count."""
    return _where_valid(chunk, logits[chunk.sequence].index_select(0, chunk.positions)).to(real)


def _where_valid(chunk: Chunk, x: Tensor) -> Tensor:
    return x if chunk.valid is None else torch.where(chunk.valid, x, 0)


def _standardised(z: Tensor, standardise: bool) -> tuple[Tensor, Tensor, Tensor]:
    """-> (c, V) over its deviation plus offset, mean (c, 1) and deviation (c, 1) of the entries above -inf."""
    if not standardise:
        nothing = z.new_zeros((z.shape[0], 1))
        return z, nothing, nothing
    count = (z != -torch.inf).sum(1, keepdim=True)
    mean = torch.where(z == -torch.inf, 0, z).sum(1, keepdim=True) / count.clamp(min=1)
    square = torch.where(z == -torch.inf, 0, z - mean).square_().sum(1, keepdim=True)
    deviation = (square / (count - 1).clamp(min=1)).sqrt()
    return z / _divisor(deviation, True), mean, deviation


def _divisor(deviation: Tensor, standardise: bool) -> Tensor:
    return deviation + DEVIATION_OFFSET if standardise else torch.ones_like(deviation)


def _largest(mass: Tensor, k: int) -> Tensor:
    """Where the k largest are, in descending order, the smaller index first among equals."""
    least = mass.topk(k).values[-1]
    above, equal = mass > least, mass == least
    within = equal & (equal.cumsum(0) <= k - above.sum())
    backwards = torch.arange(len(mass), 0, -1, device=mass.device)
    chosen = torch.where(above | within, backwards, 0).topk(k).indices
    return chosen[mass[chosen].sort(descending=True, stable=True).indices]
