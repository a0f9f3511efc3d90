"""BiLD: differences of the likeliest logits, led by either side."""

import itertools
import math

import pytest
import torch
from by_hand import BACKENDS, kl, softmax
from hypothesis import given, settings
from hypothesis import strategies as st
from row_problems import COUNTINGS, SIDES, check, golden, rows

from kd_kernels.methods import bild

each_backend = pytest.mark.parametrize("backend", BACKENDS)


def formula(top_k=8, temperature=3.0):
    def losses(student, teacher, labels):
        result = []
        for z_s, z_t in zip(student, teacher, strict=True):
            total = 0
            for leader in (z_t, z_s):
                order = sorted(range(len(leader)), key=lambda v, z=leader: -z[v].item())[:top_k]
                pairs = list(itertools.combinations(order, 2))
                d_t, d_s = (torch.stack([z[i] - z[j] for i, j in pairs]) / temperature for z in (z_t, z_s))
                total = total + kl(softmax(d_t), softmax(d_s))
            result.append(total)
        return torch.stack(result)

    return losses


def called(**options):
    return lambda student, teacher, labels, **o: bild(student, teacher, **o, **options)


@pytest.mark.parametrize("counting", COUNTINGS)
def test_defaults(counting):
    for sides in ("logits", "heads"):
        check(called(), formula(), sides, counting, "cpu")


@each_backend
@pytest.mark.parametrize("options", [{"top_k": 2}, {"top_k": 11, "temperature": 1.0}], ids=str)
def test_heads(options, backend):
    for sides in SIDES:
        check(called(**options), formula(**options), sides, "mask", backend)


@each_backend
def test_golden(backend):
    gradient = [-0.13330699, 0.11407882, -0.11269058, 0.13191875, 0.0]
    golden(lambda s, t: bild(s, t, top_k=4, backend=backend), 0.24901254, gradient)


@settings(max_examples=20)
@given(shift=st.floats(-50, 50), seed=st.integers(0, 100))
def test_logits_are_known_up_to_a_constant(shift, seed):
    torch.manual_seed(seed)
    problem = rows()
    torch.testing.assert_close(
        bild(problem.student + shift, problem.teacher - shift), bild(problem.student, problem.teacher)
    )


def test_other_entries_do_not_matter():
    problem = rows()
    loss = bild(problem.student, problem.teacher, top_k=3)
    (gradient,) = torch.autograd.grad(loss, problem.student)
    assert ((gradient != 0).sum(-1) <= 6).all()
    assert bild(problem.student, problem.student.detach()).item() == 0


def test_forbidden_entries():
    """Fewer entries than k that are allowed: no NaN."""
    problem = rows()
    with torch.no_grad():
        problem.student[..., 3:] = -math.inf
        problem.teacher[..., 3:] = -math.inf
    loss = bild(problem.student, problem.teacher)
    assert loss.isfinite()
    (gradient,) = torch.autograd.grad(loss, problem.student)
    assert gradient.isfinite().all()
    assert (gradient[..., 3:] == 0).all()


def test_vocabularies():
    problem = rows()
    expected = bild(problem.student[..., :9], problem.teacher[..., :9])
    torch.testing.assert_close(bild(problem.student, problem.teacher, vocab=9), expected)
    torch.testing.assert_close(bild(problem.student, problem.teacher[..., :9], vocab="common"), expected)


@pytest.mark.parametrize(
    ("message", "error", "options"),
    [
        ("top_k must be at least 2", ValueError, {"top_k": 1}),
        ("top_k must be at most 11, got 12", ValueError, {"top_k": 12}),
        ("top_k must be an integer", TypeError, {"top_k": 2.0}),
        ("temperature must be between", ValueError, {"temperature": 0.0}),
        ("got chunk_tokens", TypeError, {"chunk_tokens": 3}),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_bad_arguments(message, error, options):
    problem = rows()
    with pytest.raises(error, match=message):
        bild(problem.student, problem.teacher, **options)
