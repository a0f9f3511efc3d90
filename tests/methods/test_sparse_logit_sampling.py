"""Sparse logit sampling: what is drawn, and the student's loss."""

import math

import pytest
import torch
from by_hand import BACKENDS, kl, softmax
from hypothesis import given, settings
from hypothesis import strategies as st
from row_problems import COUNTINGS, MASK, SHAPE, SIDES, VOCABULARY, check, golden, rows

import kd_kernels as kd
from kd_kernels.methods import draw_entries, sparse_logit_sampling

each_backend = pytest.mark.parametrize("backend", BACKENDS)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def weights(drawn, vocabulary):
    """t of each row, in the whole vocabulary."""
    t = torch.zeros(*drawn.ids.shape[:-1], vocabulary + 1, dtype=drawn.logprobs.dtype)
    slots = torch.where(drawn.ids < 0, vocabulary, drawn.ids)
    return t.scatter_add(-1, slots, drawn.logprobs.exp())[..., :vocabulary]


@each_backend
@pytest.mark.parametrize("counting", COUNTINGS)
def test_loss(counting, backend):
    """Of a list that was drawn before, with weights that need not sum to 1."""
    ids = torch.stack([torch.randperm(VOCABULARY)[:3] for _ in range(15)]).reshape(*SHAPE, 3)
    logprobs = (torch.rand(*SHAPE, 3, dtype=torch.float64) / 2).log()
    counted = COUNTINGS[counting].get("mask", torch.ones(SHAPE)) != 0

    def formula(student, teacher, labels):
        t, at = logprobs[counted].exp(), ids[counted]
        return (t * (t / (softmax(student / 1.5)).gather(-1, at)).log()).sum(-1)

    def method(student, teacher, labels, **options):
        drawn = kd.TopK(ids, logprobs, "truncate")
        return sparse_logit_sampling(student, drawn, temperature=1.5, **options)

    for sides in ("logits", "heads"):
        check(method, formula, sides, counting, backend)


@pytest.mark.parametrize("options", [{}, {"proposal_temperature": 2.0}, {"temperature": 2.0, "draws": 7}], ids=str)
def test_drawing_now(options):
    """The same as drawing before; from heads as from logits."""
    for sides in SIDES:
        problem = rows(sides)
        loss = sparse_logit_sampling(problem.student, problem.teacher, mask=MASK, generator=generator(), **options)
        drawn = draw_entries(problem.teacher, **({"draws": 50} | options), mask=MASK, generator=generator())
        temperature = options.get("temperature", 1.0)
        before = sparse_logit_sampling(problem.student, drawn, mask=MASK, temperature=temperature)
        assert torch.equal(loss, before)
        logits, t = problem.logits[0], weights(drawn, VOCABULARY)[MASK].double()
        expected = kl(t.clamp(min=1e-300), softmax(logits[MASK] / temperature)).mean()
        torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-9)


@each_backend
def test_golden(backend):
    drawn = kd.TopK(torch.tensor([[0, 1, 2]]), torch.tensor([[0.5, 0.3, 0.2]], dtype=torch.float64).log(), "truncate")
    gradient = [-0.29056613, 0.26930028, -0.12295359, 0.12702806, 0.01719138]
    golden(lambda s, t: sparse_logit_sampling(s, drawn, backend=backend), 0.43369424, gradient)


@settings(max_examples=15)
@given(seed=st.integers(0, 1000), temperature=st.floats(0.5, 3.0), proposal=st.floats(0.5, 3.0))
def test_expectation(seed, temperature, proposal):
    """One draw from the proposal, over all entries it may fall on: the gradient of KL(p, q), exactly."""
    torch.manual_seed(seed)
    student = torch.randn(1, 6, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(1, 6, dtype=torch.float64)
    p, r = softmax(teacher / temperature), softmax(teacher / proposal)
    every = kd.TopK(torch.arange(6)[:, None], (p / r).log().T, "truncate")
    losses = sparse_logit_sampling(student.expand(6, 6), every, temperature=temperature, reduction="none")
    (gradient,) = torch.autograd.grad((r[0] * losses).sum(), student)
    whole = kd.divergence(student, teacher, temperature=temperature)
    torch.testing.assert_close(gradient, torch.autograd.grad(whole, student)[0])


class TestDraws:
    teacher = torch.tensor([[2.0, 1.0, 0.5, -1.0, -3.0], [0.0, 0.0, -math.inf, 1.0, 3.0]])

    @pytest.mark.parametrize("proposal", [None, 3.0])
    @pytest.mark.parametrize("temperature", [1.0, 2.0])
    def test_weights_are_unbiased(self, temperature, proposal):
        """The mean over many rows is p within five standard deviations."""
        n, draws = 4000, 10
        drawn = draw_entries(
            self.teacher[:, None].expand(2, n, 5), draws, temperature=temperature, proposal_temperature=proposal,
            normalize=False, generator=generator(),
        )  # fmt: skip
        t = weights(drawn, 5).double()
        p, r = (softmax(self.teacher.double() / x) for x in (temperature, proposal or temperature))
        ratio = torch.where(p > 0, p / r, 0)
        deviation = (ratio * p - p * p).clamp(min=0).div(n * draws).sqrt()
        assert ((t.mean(1) - p).abs() <= 5 * deviation + 1e-6).all()
        if proposal is None:
            torch.testing.assert_close(t.sum(-1), torch.ones(2, n, dtype=torch.float64))

    def test_counts(self):
        """Without another proposal, weights are multiples of 1/n, each entry is there once, in ascending order."""
        drawn = draw_entries(self.teacher, 20, generator=generator(3))
        assert drawn.tail == "truncate"
        for ids, logprobs in zip(drawn.ids, drawn.logprobs, strict=True):
            listed = ids[ids >= 0]
            assert (listed[1:] > listed[:-1]).all()
            assert (ids[len(listed) :] == -1).all()
            counts = 20 * logprobs[: len(listed)].exp()
            torch.testing.assert_close(counts, counts.round())
            assert counts.round().sum() == 20
            assert (logprobs[len(listed) :] == -math.inf).all()
        assert (drawn.ids >= 0).any(0).all()  # no slot more than needed
        assert not (drawn.ids[1] == 2).any()  # what is forbidden is not drawn

    def test_normalised_weights(self):
        drawn = draw_entries(self.teacher, 20, proposal_temperature=4.0, generator=generator())
        torch.testing.assert_close(weights(drawn, 5).sum(-1), torch.ones(2))
        raw = draw_entries(self.teacher, 20, proposal_temperature=4.0, normalize=False, generator=generator())
        t = weights(raw, 5)
        torch.testing.assert_close(weights(drawn, 5), t / t.sum(-1, keepdim=True))

    def test_rows_that_do_not_count(self):
        teacher = torch.randn(3, 5, 9)
        teacher[~MASK] = math.nan
        drawn = draw_entries(teacher, 4, mask=MASK, generator=generator())
        assert (drawn.ids[~MASK] == -1).all()
        assert (drawn.ids[MASK][:, 0] >= 0).all()
        nothing = draw_entries(teacher, 4, mask=torch.zeros(3, 5, dtype=torch.bool))
        assert nothing.ids.shape == (3, 5, 1)
        assert sparse_logit_sampling(torch.randn(3, 5, 9), nothing, mask=MASK).item() == 0

    def test_part_of_the_vocabulary(self):
        drawn = draw_entries(torch.zeros(100, 9), 10, vocab=4, generator=generator())
        assert drawn.ids.max() == 3

    def test_reproducible(self):
        first, second = (draw_entries(self.teacher, 9, generator=generator(5)) for _ in range(2))
        assert torch.equal(first.ids, second.ids)
        assert torch.equal(first.logprobs, second.logprobs)

    @pytest.mark.parametrize(
        ("message", "error", "options"),
        [
            ("draws must be at least 1", ValueError, {"draws": 0}),
            ("temperature must be a number", TypeError, {"temperature": (1.0, 2.0)}),
            ("temperature must be between", ValueError, {"proposal_temperature": 0.0}),
            ("normalize must be True or False", TypeError, {"normalize": 1}),
            ("vocab must be between 1 and 5", ValueError, {"vocab": 6}),
            ("mask must be bool or integer", TypeError, {"mask": torch.ones(2)}),
            ("teacher must be a tensor of logits", TypeError, {"teacher": None}),
        ],
        ids=lambda x: x if isinstance(x, str) else "",
    )
    def test_bad_arguments(self, message, error, options):
        with pytest.raises(error, match=message):
            draw_entries(**({"teacher": self.teacher} | options))


def test_bad_arguments():
    problem = rows()
    logprobs, ids = problem.teacher.log_softmax(-1).topk(3)
    with pytest.raises(ValueError, match="tail of the teacher must be 'truncate'"):
        sparse_logit_sampling(problem.student, kd.TopK(ids, logprobs))
    with pytest.raises(ValueError, match="vocabularies of 11 and 9"):
        sparse_logit_sampling(problem.student, problem.teacher[..., :9])
    with pytest.raises(TypeError, match="got top_k"):
        sparse_logit_sampling(problem.student, problem.teacher, top_k=3)
