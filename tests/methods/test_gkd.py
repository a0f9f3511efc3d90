"""GKD: the generalised JSD, and whose text it is of."""

import pytest
import torch
from by_hand import BACKENDS, kl, softmax
from row_problems import COUNTINGS, SIDES, check, golden, rows

import kd_kernels as kd
from kd_kernels.methods import gkd, on_policy

each_backend = pytest.mark.parametrize("backend", BACKENDS)


def formula(beta=0.5, temperature=1.0):
    def losses(student, teacher, labels):
        p, q = softmax(teacher / temperature), softmax(student / temperature)
        if beta in (0, 1):
            return kl(q, p) if beta else kl(p, q)
        m = beta * p + (1 - beta) * q
        return beta * kl(p, m) + (1 - beta) * kl(q, m)

    return losses


def called(**options):
    return lambda student, teacher, labels, **o: gkd(student, teacher, **o, **options)


@pytest.mark.parametrize("counting", COUNTINGS)
def test_defaults(counting):
    check(called(), formula(), "logits", counting, "cpu")


@each_backend
@pytest.mark.parametrize("options", [{}, {"beta": 0.0}, {"beta": 1.0}, {"beta": 0.1, "temperature": 0.9}], ids=str)
def test_heads(options, backend):
    for sides in SIDES:
        check(called(**options), formula(**options), sides, "mask", backend)


@each_backend
def test_golden(backend):
    def of(beta):
        return lambda s, t: gkd(s, t, beta=beta, backend=backend)

    golden(of(0.1), 0.04112600, [-0.03372080, 0.02951291, -0.00541901, 0.00847934, 0.00114755])
    golden(of(0.5), 0.11183220, [-0.08149552, 0.07154759, -0.01664910, 0.02342659, 0.00317044])
    golden(of(0.9), 0.04175152, [-0.02859654, 0.02406864, -0.00685013, 0.01002174, 0.00135629])


def test_beta_weighs_the_teacher():
    """The JSD is that of exchanged sides at 1 - beta."""
    student, teacher = (x.detach() for x in rows().logits)
    torch.testing.assert_close(gkd(student, teacher, beta=0.2), gkd(teacher, student, beta=0.8))


def test_squared_temperature_and_sparse_teachers():
    problem = rows()
    logprobs, ids = (problem.teacher / 2).log_softmax(-1).topk(11)
    loss = gkd(problem.student, kd.TopK(ids, logprobs), temperature=2.0, scale_t2=True)
    torch.testing.assert_close(loss, 4 * gkd(problem.student, problem.teacher, temperature=2.0))


def test_on_policy_fraction():
    assert not any(on_policy(step, 0.0) for step in range(1000))
    assert all(on_policy(step, 1.0) for step in range(1000))
    count = sum(on_policy(step, 0.3) for step in range(10000))
    assert abs(count - 3000) < 5 * (10000 * 0.3 * 0.7) ** 0.5


def test_on_policy_is_a_function_of_its_arguments():
    """Not of the state of a generator, and another for another seed. A larger fraction keeps the steps of a smaller."""
    first = [on_policy(step, 0.5, seed=1) for step in range(64)]
    torch.manual_seed(9)
    assert first == [on_policy(step, 0.5, seed=1) for step in range(64)]
    assert first != [on_policy(step, 0.5, seed=2) for step in range(64)]
    assert all(
        more or not less for less, more in zip(first, (on_policy(s, 0.7, seed=1) for s in range(64)), strict=True)
    )
    assert [on_policy(step) for step in range(10)] == [True] * 3 + [False] * 2 + [True] + [False] * 3 + [True]


@pytest.mark.parametrize(
    ("message", "error", "call"),
    [
        ("JSD: beta must be between 0 and 1", ValueError, lambda s, t: gkd(s, t, beta=1.1)),
        ("got lambda_", TypeError, lambda s, t: gkd(s, t, lambda_=0.5)),
        ("vocabularies of 11 and 10", ValueError, lambda s, t: gkd(s, t[..., :10])),
        ("student must be a tensor of logits or a Head", TypeError, lambda s, t: gkd(None, t)),
        ("lmbda must be between 0 and 1", ValueError, lambda s, t: on_policy(0, 2)),
        ("lmbda must be a number", TypeError, lambda s, t: on_policy(0, None)),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_bad_arguments(message, error, call):
    problem = rows()
    with pytest.raises(error, match=message):
        call(problem.student, problem.teacher)
