"""What the sweeps over a row's tail show; the kind of divergence plays no part."""

import math

import torch
from comparisons import guarded_memory

from kd_kernels.backends.select import implementation
from kd_kernels.testing.inputs import far_pair

INF = math.inf


def compare(logits, ids, backend, *, inverse_temperature=1.0, columns=None, weight=None, relative=1e-5):
    """Both sweeps, the second in place, against sums in float64."""
    columns = logits.shape[1] if columns is None else columns
    kernels = implementation(backend)
    counts = torch.ones(len(logits), dtype=torch.bool) if weight is None else weight != 0
    entries, factor = torch.randn(ids.shape), torch.linspace(0.5, 2, len(logits))
    inside = (ids >= 0) & (ids < columns)
    slots = torch.where(inside, ids, columns)
    listed = torch.zeros(len(logits), columns + 1, dtype=torch.bool).scatter(1, slots, True)[:, :columns]
    scaled = (logits[:, :columns].double() * inverse_temperature).masked_fill(listed, -INF)

    memory = torch.full((len(logits), logits.shape[1] + 5), 7.0)
    z = memory[:, :-5].copy_(logits)
    with guarded_memory():
        tail = kernels.tail_logits(z, ids, weight, inverse_temperature, columns)
    error = (tail.double() - scaled.logsumexp(1))[counts & listed.logical_not().any(1)]
    size = 1 + scaled[counts].masked_fill(scaled[counts] == -INF, 0).abs().amax()
    assert not tail.isnan().any(), "tail: NaN"
    assert (tail[~counts] == 0).all(), "the tail of a row that does not count"
    assert error.nan_to_num().abs().max() <= relative * size, f"error of the tail {error.abs().max():.1e}"

    # From the tail as it was rounded.
    share = torch.where(scaled == -INF, 0, (scaled - tail[:, None].double()).exp())
    of_list = torch.zeros(len(logits), columns + 1, dtype=torch.float64).scatter(1, slots, entries.double())
    expected = factor[:, None] * share + of_list[:, :columns] * listed
    kernels.tail_gradient(z, ids, weight, entries, tail, factor, inverse_temperature, columns, z)
    assert (memory[:, -5:] == 7).all(), "memory after a row was written"
    assert (z[:, columns:] == 0).all(), "a gradient beyond the vocabulary"
    assert (z[~counts] == 0).all(), "a gradient of a row that does not count"
    error = (z[:, :columns].double() - expected)[counts].abs().max()
    assert error <= relative, f"error of the gradient {error:.1e}"


def some_lists(kind, backend):
    """Blocks and a part of one, empty slots, a row that is not read, fewer columns than logits."""
    logits, _ = far_pair(3, 2300)
    ids = torch.stack([torch.randperm(2200)[:9] for _ in range(3)])
    ids[0, 3], ids[1, 4], ids[2, 5] = -1, 2250, 2**40
    logits[1] = logits[:, 2201:] = math.nan
    compare(logits, ids, backend, inverse_temperature=0.7, columns=2201, weight=torch.tensor([2.0, 0.0, 0.5]))


def short_rows(kind, backend):
    compare(far_pair(2, 13)[0] - 5, torch.tensor([[12, 0], [7, 8]]), backend)


def edges_of_blocks(kind, backend):
    """All of the mass in listed entries at the ends of what may be swept at once."""
    logits, _ = far_pair(2, 4100)
    ids = torch.tensor([[0, 7, 8, 2047, 2048, 4095, 4096, 4099]]).expand(2, -1)
    compare(logits.scatter(1, ids, 50.0), ids, backend)


def far_below_the_list(kind, backend):
    logits, _ = far_pair(2, 100)
    logits[:, 5:7] += 90
    compare(logits, torch.tensor([[5, 6]]).expand(2, -1), backend)


def rising_and_falling(kind, backend):
    logits, _ = far_pair(2, 4200)
    logits[0, 4000:] += 300
    logits[1, :4000] += 300
    compare(logits, torch.tensor([[4150, 3], [7, 9]]), backend)


def offsets(kind, backend):
    relative = 1e-6 if backend == "cpu" else 1e-5  # an fma of Triton's interpreter rounds twice
    logits = (far_pair(2, 300)[0] * 16).round() / 16
    compare(logits + 1e4, torch.tensor([[5], [6]]), backend, inverse_temperature=0.3, relative=relative)


def nothing_left(kind, backend):
    """Everything that has mass is listed."""
    logits = torch.full((2, 30), -INF)
    logits[:, 3:7] = 1.0
    compare(logits, torch.arange(3, 7).expand(2, -1), backend)


def nan_shows(kind, backend):
    logits, _ = far_pair(2, 300)
    logits[1, 250] = math.nan
    tail = implementation(backend).tail_logits(logits, torch.tensor([[3], [3]]), None, 1.0, 300)
    assert tail.isnan().tolist() == [False, True], "NaN logits, and a tail that hides them"


TAIL_SITUATIONS = [
    short_rows, some_lists, edges_of_blocks, far_below_the_list, rising_and_falling, offsets, nothing_left, nan_shows,
]  # fmt: skip
