"""Sums and gradients over the entries of a row outside a list, against extended precision and plain PyTorch."""

import itertools
import math
import mmap

import numpy
import pytest
import torch
from support import GPU, few, on_device

from kd_kernels import _core
from kd_kernels.backends.select import SUPPORT, implementation
from kd_kernels.testing.budget import assert_within_budget
from kd_kernels.testing.inputs import generator

INF = math.inf
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
# Vocabulary and length of the list: less than a register, within a block of any backend, no multiple of anything,
# several blocks; lists of nothing, of one entry, of all.
SIZES = [(1, 0), (1, 1), (7, 0), (7, 1), (7, 7), (1000, 64), (300, 300), (32003, 300)]

pytestmark = [
    pytest.mark.usefixtures("nan_in_fresh_memory"),
    pytest.mark.filterwarnings("ignore:divide by zero encountered in log2"),  # the interpreter's log2 is numpy's
]
each_kernel = pytest.mark.parametrize("backend", ["cpu", "triton"])
BACKENDS = [name for name, support in SUPPORT.items() if "tails" in support.groups]
each_backend = pytest.mark.parametrize("backend", BACKENDS)
each_backend_and_dtype = pytest.mark.parametrize(
    ("backend", "dtype"),
    [(b, d) for b, d in itertools.product(BACKENDS, DTYPES) if d in SUPPORT[b].dtypes],
    ids=lambda x: str(x).removeprefix("torch."),
)


def make(rows, vocab, slots, dtype, scale=3.0, seed=0):
    """Logits, and for each row `slots` entries in no order."""
    g = generator(seed)
    logits = (torch.randn(rows, vocab, generator=g, dtype=torch.float64) * scale).to(dtype)
    order = [torch.randperm(vocab, generator=g)[:slots] for _ in range(rows)]
    return logits, torch.stack(order)


def real_of(logits):
    return torch.float64 if logits.dtype == torch.float64 else torch.float32


def is_listed(logits, ids, columns):
    listed = torch.zeros(logits.shape[0], columns, dtype=torch.bool)
    for row, slots in enumerate(ids.tolist()):
        for v in slots:
            if 0 <= v < columns:
                listed[row, v] = True
    return listed


def extended(logits, listed, inverse_temperature, factor):
    """Tails and their gradient in extended precision, of the very numbers the tensors hold."""
    z = logits.double().numpy().astype(numpy.longdouble) * numpy.longdouble(inverse_temperature)
    z = numpy.where(listed.numpy(), -numpy.inf, z)
    top = z.max(-1, keepdims=True)
    top = numpy.where(top == -numpy.inf, 0, top)
    e = numpy.exp(z - top)
    total = e.sum(-1, keepdims=True)
    with numpy.errstate(divide="ignore"):
        tail = (top + numpy.log(total))[:, 0]
    share = e / numpy.where(total == 0, 1, total)
    gradient = factor.double().numpy()[:, None] * share
    return torch.from_numpy(tail.astype("float64")), torch.from_numpy(gradient.astype("float64"))


def eager(logits, listed, inverse_temperature, factor):
    """What one writes: masked log-sum-exp and exponentials, in float32."""
    z = (logits.to(real_of(logits)) * inverse_temperature).masked_fill(listed, -INF)
    tail = z.logsumexp(-1)
    share = torch.where((tail == -INF)[:, None], 0, (z - tail[:, None]).exp())
    return tail, (factor[:, None] * share).to(logits.dtype)


def check(backend, logits, ids, inverse_temperature=1.0, columns=None, weight=None, layout=torch.clone):
    """Both functions on `layout(logits)`; -> tail and gradient."""
    columns = logits.shape[1] if columns is None else columns
    kernels = implementation(backend)
    real = real_of(logits)
    counts = torch.ones(logits.shape[0], dtype=torch.bool) if weight is None else weight != 0
    factor = torch.linspace(-0.5, 2, logits.shape[0], dtype=real)
    entries = torch.randn(ids.shape, generator=generator(1), dtype=real)
    entries = entries.to(logits.dtype).to(real)  # the interpreter cuts bfloat16 off where a GPU rounds
    listed = is_listed(logits, ids, columns)
    exact_tail, exact_gradient = extended(logits[:, :columns], listed, inverse_temperature, factor)
    eager_tail, eager_gradient = eager(logits[:, :columns], listed, inverse_temperature, factor)

    z, places = on_device(backend, layout(logits), ids)
    weights = None if weight is None else on_device(backend, weight)
    tail = kernels.tail_logits(z, places, weights, inverse_temperature, columns)
    assert tail.dtype == real
    assert (tail[~counts] == 0).all()
    assert_within_budget(tail.cpu()[counts], exact_tail[counts], eager_tail[counts], "tail")
    if backend == "reference":
        leaf = z.clone().requires_grad_()
        product = factor * kernels.tail_logits(leaf, places, weights, inverse_temperature, columns)
        (gradient,) = torch.autograd.grad((product[tail > -INF] / inverse_temperature).sum(), leaf)
        assert (gradient[:, :columns][listed] == 0).all()
    else:
        gradient = torch.full_like(z, math.nan)
        more = on_device(backend, entries, tail, factor)
        kernels.tail_gradient(z, places, weights, *more, inverse_temperature, columns, gradient)
        expected = torch.zeros(logits.shape, dtype=logits.dtype)
        for row, slot in (ids >= 0).logical_and(ids < columns).logical_and(counts[:, None]).nonzero().tolist():
            expected[row, ids[row, slot]] = entries[row, slot].to(logits.dtype)
        gradient = gradient.cpu()
        assert torch.equal(gradient[:, :columns][listed], expected[:, :columns][listed])
    assert (gradient[~counts] == 0).all()
    assert (gradient[:, columns:] == 0).all()
    unlisted = ~listed & counts[:, None]
    if unlisted.any():
        parts = (gradient[:, :columns], exact_gradient, eager_gradient)
        assert_within_budget(*(x[unlisted] for x in parts), "gradient")
    return tail.cpu(), gradient


@each_backend_and_dtype
@pytest.mark.parametrize(("vocab", "slots"), SIZES)
@pytest.mark.parametrize("inverse_temperature", [1.0, 1 / 1.5])
def test_sizes(backend, dtype, vocab, slots, inverse_temperature):
    logits, ids = make(8, vocab, slots, dtype)  # enough for an eager run to show its typical error
    tail, _ = check(backend, logits, ids, inverse_temperature)
    assert (tail == -INF).all() == (vocab == slots)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("vocab", [1000, 32003])
def test_everything_listed_in_a_large_vocabulary(dtype, vocab):
    """The interpreter is too slow for it."""
    assert check("cpu", *make(1, vocab, vocab, dtype))[0] == -INF
    check("cpu", *make(1, vocab, vocab - 1, dtype))


@pytest.mark.parametrize("dtype", DTYPES[:3])
@pytest.mark.parametrize("simd", ["scalar", "avx2", "avx512"])
def test_every_instruction_set(simd, dtype):
    _core.limit_simd(getattr(_core.Simd, simd))
    try:
        for vocab, slots in SIZES:
            check("cpu", *make(4, vocab, slots, dtype), 0.7)
    finally:
        _core.limit_simd(_core.Simd.avx512)


@each_backend_and_dtype
def test_empty_slots(backend, dtype):
    """An id outside the row is no entry, wherever it stands and however often."""
    logits, ids = make(3, 1000, 40, dtype)
    with_empty = torch.cat([torch.full((3, 2), -1), ids, torch.full((3, 1), 1000), torch.full((3, 2), 2**40)], 1)
    with_empty = with_empty[:, torch.randperm(45)]
    tail, _ = check(backend, logits, with_empty)
    torch.testing.assert_close(tail, check(backend, logits, ids)[0], rtol=0, atol=0)
    all_empty = torch.full((3, 5), -(2**40))
    torch.testing.assert_close(
        check(backend, logits, all_empty)[0], check(backend, logits, ids[:, :0])[0], rtol=0, atol=0
    )


@each_backend_and_dtype
def test_forbidden_entries(backend, dtype):
    """-inf: within the tail, in all of the first block, in all of the tail, in the list."""
    logits, ids = make(5, 6000, 10, dtype)
    logits[0, ::7] = -INF
    logits[1, :5000] = -INF
    kept = logits[2:4].gather(1, ids[2:4])
    logits[2:4] = -INF
    logits[2:3].scatter_(1, ids[2:3], kept[:1])
    logits[4].scatter_(0, ids[4], -INF)
    tail, _ = check(backend, logits, ids)
    assert tail.isinf().tolist() == [False, False, True, True, False]


@each_backend_and_dtype
@pytest.mark.parametrize("offset", [1e4, -1e4])
def test_large_offsets(backend, dtype, offset):
    logits, ids = make(3, 3000, 20, torch.float64)
    check(backend, (logits + offset).to(dtype), ids, 1.0)
    check(backend, (logits + offset).to(dtype), ids, 0.3)


@each_backend
@pytest.mark.parametrize("height", [60.0, 200.0])
@pytest.mark.parametrize("where", ["listed", "late"])
def test_far_below_the_listed_mass(backend, height, where):
    """The tail is e^-height of the row and keeps every digit: it lies at 0, where its error is that of its exponential.

    "late": an entry of the tail stands as far above its first block too.
    """
    logits, ids = make(4, 9000, 64, torch.float32)
    logits -= logits.logsumexp(-1, keepdim=True)
    logits.scatter_add_(1, ids, torch.full(ids.shape, height))
    if where == "late":
        logits.masked_fill_(is_listed(logits, ids, 9000).logical_not_(), -height)
        logits[:, 8500:] = torch.where(is_listed(logits, ids, 9000)[:, 8500:], logits[:, 8500:], -6.0)
    tail, _ = check(backend, logits, ids)
    exact, _ = extended(logits, is_listed(logits, ids, 9000), 1.0, torch.ones(4))
    relative = ((tail.double() - exact).exp() - 1).abs().max()
    assert exact.abs().max() < 1
    assert relative < 8 * torch.finfo(torch.float32).eps


@each_backend
def test_lists_at_the_edges_of_blocks(backend):
    """The first and the last entry of what may be swept at once hold nearly all of the mass."""
    edges = [v for end in (16, 1024, 2048, 4096, 6144, 6500) for v in (end - 1, end)][:-1]
    ids = torch.tensor([edges, [0, *edges[1:]], [*edges[::-1]]])
    logits, _ = make(3, 6500, 0, torch.float32)
    check(backend, logits.scatter(1, ids, 50.0), ids)
    check(backend, logits.scatter(1, ids, -50.0), ids)


@each_backend
def test_rising_row(backend):
    """A first block that says nothing about the rest: the sum leaves its range and the row is swept again."""
    logits, ids = make(2, few(backend, 40000, 7000), 5, torch.float32)
    logits[0] += torch.linspace(0, 300, logits.shape[1])
    logits[1] -= torch.linspace(0, 300, logits.shape[1])
    check(backend, logits, ids)


@each_backend_and_dtype
def test_rows_of_weight_zero_are_not_read(backend, dtype):
    logits, ids = make(5, 700, 9, dtype)
    weight = torch.tensor([1.0, 0.0, 0.5, 0.0, -1.0])
    clean = check(backend, logits, ids, weight=weight)
    logits[1], logits[3] = math.nan, INF

    def hostile(_):
        return logits

    masked = torch.where((weight != 0)[:, None], logits, 0)
    dirty = check(backend, masked, ids, weight=weight, layout=hostile)
    assert torch.equal(dirty[0], clean[0])
    assert torch.equal(dirty[1], clean[1])


@each_kernel
@pytest.mark.parametrize("at", [5, 6500])
def test_nan_stays_visible_unless_listed(backend, at):
    logits, ids = make(3, 7000, 4, torch.float32)
    logits[1:, at] = math.nan
    ids[2, 1] = at
    ids[:2][ids[:2] == at] = -1
    z, places = on_device(backend, logits, ids)
    kernels = implementation(backend)
    tail = kernels.tail_logits(z, places, None, 1.0, 7000)
    assert tail.isnan().tolist() == [False, True, False]
    gradient = torch.empty_like(z)
    entries, factor = torch.zeros_like(places, dtype=torch.float32), torch.ones_like(tail)
    kernels.tail_gradient(z, places, None, entries, tail, factor, 1.0, 7000, gradient)
    assert gradient.isnan().any(-1).tolist() == [False, True, False]
    logits[1, at] = INF
    assert not kernels.tail_logits(z.copy_(logits), places, None, 1.0, 7000)[1].isfinite()


@each_kernel
def test_no_tail_and_no_factor(backend):
    """Where the tail is -inf or its factor 0 the gradient is 0, though the logits be anything."""
    logits, ids = make(3, 50, 6, torch.float32)
    logits[1] = math.nan
    tail = torch.tensor([-INF, 0.0, -INF])
    factor = torch.tensor([1.0, 0.0, 0.0])
    entries = torch.randn(3, 6)
    gradient = torch.full_like(logits, math.nan)
    tensors = on_device(backend, logits, ids, entries, tail, factor, gradient)
    implementation(backend).tail_gradient(*tensors[:2], None, *tensors[2:5], 1.0, 50, tensors[5])
    assert torch.equal(tensors[5].cpu(), torch.zeros(3, 50).scatter(1, ids, entries))


@each_backend_and_dtype
def test_fewer_columns(backend, dtype):
    """Entries from `columns` on are neither read nor listed, and have no gradient."""
    logits, ids = make(3, 400, 30, dtype)

    def nan_beyond(x):
        return torch.cat([x[:, :333], torch.full_like(x[:, 333:], math.nan)], 1)

    check(backend, logits, ids, columns=333, layout=nan_beyond)


@each_kernel
@pytest.mark.parametrize("dtype", DTYPES[:3])
def test_layouts(backend, dtype):
    """Padded rows, transposed logits, in place: the same bits, and nothing beside the rows is written."""
    logits, ids = on_device(backend, *make(few(backend, 6, 3), 5000, 200, dtype))
    rows = logits.shape[0]
    kernels = implementation(backend)
    entries, factor = torch.randn(ids.shape, device=ids.device), torch.rand(rows, device=ids.device) + 0.5
    tail = kernels.tail_logits(logits, ids, None, 0.8, 4900)
    expected = torch.empty_like(logits)
    kernels.tail_gradient(logits, ids, None, entries, tail, factor, 0.8, 4900, expected)

    wide = torch.full((rows, 5013), math.nan, dtype=dtype, device=logits.device)
    padded, transposed = wide[:, :5000].copy_(logits), logits.t().contiguous().t()
    order = torch.arange(200 - 1, -1, -1, device=ids.device)
    for z in (padded, transposed):
        assert torch.equal(kernels.tail_logits(z, ids[:, order], None, 0.8, 4900), tail)
        gradient = torch.full_like(wide, math.nan)
        kernels.tail_gradient(z, ids, None, entries, tail, factor, 0.8, 4900, gradient[:, :5000])
        assert torch.equal(gradient[:, :5000], expected)
        assert gradient[:, 5000:].isnan().all()
    kernels.tail_gradient(padded, ids, None, entries, tail, factor, 0.8, 4900, padded)
    assert torch.equal(padded, expected)
    assert wide[:, 5000:].isnan().all()


@each_backend
def test_no_rows(backend):
    logits, ids = on_device(backend, torch.randn(0, 9), torch.zeros(0, 2, dtype=torch.int64))
    tail = implementation(backend).tail_logits(logits, ids, None, 1.0, 9)
    assert tail.shape == (0,)
    if backend != "reference":
        entries = torch.zeros_like(ids, dtype=torch.float32)
        implementation(backend).tail_gradient(logits, ids, None, entries, tail, tail, 1.0, 9, logits)


@pytest.mark.skipif(GPU, reason="a GPU has no untouched pages")
@each_kernel
def test_rows_farther_apart_than_2_to_the_31(backend):
    storage = torch.frombuffer(mmap.mmap(-1, 2 * 3 * 2**30), dtype=torch.bfloat16)
    wide = storage.as_strided((3, 64), (2**30, 1))
    logits, ids = make(3, 64, 5, torch.bfloat16)
    wide.copy_(logits)
    kernels = implementation(backend)
    tail = kernels.tail_logits(wide, ids, None, 1.0, 64)
    assert torch.equal(tail, kernels.tail_logits(logits, ids, None, 1.0, 64))
    for z in (wide, logits):
        kernels.tail_gradient(z, ids, None, torch.ones(3, 5), tail, torch.ones(3), 1.0, 64, z)
    assert torch.equal(wide, logits)


@each_kernel
def test_same_bits_whatever_the_threads_and_the_batch(backend):
    logits, ids = on_device(backend, *make(few(backend, 40, 4), few(backend, 9000, 3000), 50, torch.bfloat16))
    kernels = implementation(backend)
    columns = logits.shape[1]

    def both(rows):
        z, places = logits[rows], ids[rows]
        tail = kernels.tail_logits(z, places, None, 1.0, columns)
        gradient = torch.empty_like(z)
        kernels.tail_gradient(z, places, None, places.float(), tail, tail, 1.0, columns, gradient)
        return tail, gradient

    tail, gradient = both(slice(None))
    threads = torch.get_num_threads()
    for count in (1, 2, 3, 7):
        torch.set_num_threads(count)
        again = both(slice(None))
        torch.set_num_threads(threads)
        assert torch.equal(again[0], tail)
        assert torch.equal(again[1], gradient)
    alone = both(slice(2, 3))
    assert torch.equal(alone[0], tail[2:3])
    assert torch.equal(alone[1], gradient[2:3])


def test_reference_is_differentiable_any_number_of_times():
    logits, ids = make(3, 9, 3, torch.float64)
    ids[0, 1] = -1
    logits[1, (ids[1, 0] + 1) % 9] = -INF
    ids[2] = 9
    weight = torch.tensor([1.0, 2.0, 0.0])
    finite = logits.isfinite()
    leaf = torch.where(finite, logits, 0).requires_grad_()

    def tails(z):
        return implementation("reference").tail_logits(torch.where(finite, z, -INF), ids, weight, 0.7, 8)

    assert torch.autograd.gradcheck(tails, leaf)
    assert torch.autograd.gradgradcheck(tails, leaf)

    everything = torch.arange(9).expand(3, 9)
    tail = implementation("reference").tail_logits(leaf, everything, None, 1.0, 9)
    (gradient,) = torch.autograd.grad(tail.sum(), leaf)
    assert (gradient == 0).all()
