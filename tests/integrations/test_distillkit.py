"""DistillKit's losses: against their formulas, and against DistillKit where it is installed."""

import math
from types import SimpleNamespace

import pytest
import torch
from same import assert_same, jsd, kl, leaf

from kd_kernels.integrations import distillkit as ours

CLASSES = ["KLDLoss", "JSDLoss", "TVDLoss"]
each_class = pytest.mark.parametrize("name", CLASSES)
each_missing = pytest.mark.parametrize("missing", ["zero", "symmetric_uniform"])
BATCH, TOKENS, VOCABULARY, K = 2, 4, 19, 5
MASK = torch.tensor([[True, False, True, True], [True, True, False, False]])


def outputs(dtype=torch.float64):
    return SimpleNamespace(logits=leaf(BATCH, TOKENS, VOCABULARY, scale=2, dtype=dtype))


def dense(dtype=torch.float64):
    logits = 2 * torch.randn(BATCH, TOKENS, VOCABULARY, dtype=dtype)
    return SimpleNamespace(logits=logits, generation_temperature=1.0, hidden_states=None, vocab_size=VOCABULARY)


def sparse(temperature=1.0, log_values=True, dtype=torch.float64):
    """The likeliest entries of a teacher that was sampled at this temperature."""
    logits = (2 * torch.randn(BATCH, TOKENS, VOCABULARY, dtype=torch.float64) / temperature).to(dtype)
    values, ids = (logits.log_softmax(-1) if log_values else logits).topk(K)
    return SimpleNamespace(
        sparse_ids=ids, sparse_values=values, log_values=log_values, generation_temperature=temperature,
        hidden_states=None, vocab_size=VOCABULARY,
    )  # fmt: skip


def divergence(name, log_p, log_q):
    if name == "KLDLoss":
        return kl(log_p, log_q)
    return jsd(log_p, log_q, 0.5) if name == "JSDLoss" else 0.5 * (log_p.exp() - log_q.exp()).abs().sum(-1)


def of_sparse(name, logits, signal, temperature, missing):
    """Rows: the listed entries, and one more for the rest."""
    log_q = (logits / temperature).log_softmax(-1).gather(-1, signal.sparse_ids)
    q = torch.cat([log_q.exp(), 1 - log_q.exp().sum(-1, keepdim=True)], -1)
    power = signal.generation_temperature / temperature
    p = (signal.sparse_values * power).exp()
    if missing == "zero":
        p = torch.cat([p, torch.zeros_like(p[..., :1])], -1)
    else:
        p = torch.cat([p, (1 - signal.sparse_values.exp().sum(-1, keepdim=True)) ** power], -1)
    p = p / p.sum(-1, keepdim=True)
    tiny = 1e-300  # whose product with 0 is 0
    return divergence(name, p.clamp_min(tiny).log(), q.log())


@each_class
@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize(
    ("mask", "items"), [(None, None), (MASK, None), (MASK[..., None], 9)], ids=["all", "mask", "items"]
)
def test_dense(name, temperature, mask, items):
    student, signal = outputs(), dense()
    loss = getattr(ours, name)(temperature)

    def formula():
        log_q, log_p = ((x.logits / temperature).log_softmax(-1) for x in (student, signal))
        rows = divergence(name, log_p, log_q)
        counted = torch.ones_like(MASK) if mask is None else MASK
        return temperature**2 * rows[counted].sum() / (items or counted.sum())

    assert_same(lambda: loss(student, signal, mask, None, items), formula, {"student": student.logits})


@each_class
@each_missing
@pytest.mark.parametrize(("generation", "temperature"), [(1.0, 1.0), (1.0, 2.0), (1.5, 0.8)])
def test_sparse(name, missing, generation, temperature):
    student, signal = outputs(), sparse(generation)
    loss = getattr(ours, name)(temperature, missing)

    def formula():
        rows = of_sparse(name, student.logits, signal, temperature, missing)
        return temperature**2 * rows[MASK].sum() / MASK.sum()

    assert_same(lambda: loss(student, signal, MASK), formula, {"student": student.logits}, rtol=1e-5)


@each_class
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_sparse_logits(name, temperature):
    student, signal = outputs(), sparse(log_values=False)
    loss = getattr(ours, name)(temperature)

    def formula():
        rows = of_sparse(name, student.logits, signal, temperature, "zero")
        return temperature**2 * rows.sum() / (BATCH * TOKENS)

    assert_same(lambda: loss(student, signal), formula, {"student": student.logits}, rtol=1e-5)


@pytest.fixture(scope="module")
def theirs():
    lossfuncs = pytest.importorskip("distillkit.lossfuncs")
    return lossfuncs, pytest.importorskip("distillkit.signals")


@each_class
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("dense", {}), ("zero", {}), ("zero", {"temperature": 2.0}), ("symmetric_uniform", {}),
        ("symmetric_uniform", {"temperature": 2.0}), ("logits", {"log_values": False, "temperature": 2.0}),
    ],
    ids=str,
)  # fmt: skip
def test_the_original(name, kind, options, theirs):
    lossfuncs, signals = theirs
    student = outputs(torch.float32)
    temperature = options.get("temperature", 1.0)
    missing = kind if kind in ours.MISSING else "zero"
    if kind == "dense":
        signal, cls = dense(torch.float32), signals.DenseSignal
    else:
        signal, cls = sparse(log_values=options.get("log_values", True), dtype=torch.float32), signals.SparseSignal
    handling = lossfuncs.MissingProbabilityHandling(missing)
    losses = getattr(ours, name)(temperature, handling), getattr(lossfuncs, name)(temperature, handling)
    assert losses[0].name() == losses[1].name()
    both = zip(losses, (signal, cls(**vars(signal))), strict=True)
    assert_same(
        *(lambda f=f, x=x: f(student, x, MASK[..., None]) for f, x in both), {"student": student.logits}, rtol=1e-4
    )


@each_class
def test_no_row_counts(name):
    student = outputs()
    value = getattr(ours, name)(1.0)(student, dense(), torch.zeros_like(MASK))
    value.backward()
    assert value == 0
    assert not student.logits.grad.any()


class TestRefused:
    @pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan])
    def test_temperature(self, temperature):
        with pytest.raises(ValueError, match="temperature must be positive"):
            ours.KLDLoss(temperature)

    def test_what_logits_miss(self):
        with pytest.raises(ValueError, match="must be 'zero'"):
            ours.JSDLoss(1.0, "symmetric_uniform")(outputs(), sparse(log_values=False))

    def test_an_unknown_way(self):
        with pytest.raises(ValueError, match="missing_probability_handling must be one of"):
            ours.TVDLoss(1.0, "uniform")

    def test_shapes(self):
        signal = sparse()
        signal.sparse_ids = signal.sparse_ids[:, :-1]
        with pytest.raises(ValueError, match="same shape"):
            ours.KLDLoss(1.0)(outputs(), signal)
