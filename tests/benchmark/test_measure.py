"""Cases, the correctness gate and what is derived from times."""

import pytest
import torch

import kd_kernels as kd
from kd_kernels.benchmark.case import Provider
from kd_kernels.benchmark.measure import Measurement, Outcome, measure
from kd_kernels.benchmark.rows import RowsCase
from kd_kernels.benchmark.timing import Spread


def rows_case(**changes) -> RowsCase:
    settings = {"divergence": kd.ForwardKL(), "rows": 19, "vocab": 100, "dtype": torch.float32, "device": "cpu"}
    return RowsCase(**(settings | {"backward": True} | changes))


def loss(student, teacher):
    return kd.divergence(student, teacher, "forward_kl", backend="reference")


def outcome(provider: Provider, **changes) -> Outcome:
    measurement = measure(rows_case(**changes), [provider], seconds=0)
    assert measurement.failed == (measurement.outcomes[0].status in ("wrong", *["failed", "missing"] * provider.ours))
    return measurement.outcomes[0]


class Doubled(torch.autograd.Function):
    """A right value with twice the gradient."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, upstream):
        return 2 * upstream


def in_one_row(student, teacher):
    return loss(torch.cat([Doubled.apply(student[:1]), student[1:]]), teacher)


WRONG = {
    "value": lambda student, teacher: 1.001 * loss(student, teacher),
    "kind": lambda student, teacher: kd.divergence(student, teacher, "reverse_kl"),
    "nan": lambda student, teacher: loss(student, teacher) * torch.nan,
    "gradient": lambda student, teacher: loss(Doubled.apply(student), teacher),
    "gradient of a row": in_one_row,
    "rows left out": lambda student, teacher: loss(student[:-1], teacher[:-1]),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_a_wrong_result_gets_no_time(wrong, dtype):
    got = outcome(Provider("planted", lambda: wrong), dtype=dtype)
    assert got.status == "wrong"
    assert "is off by" in got.reason
    assert got.time is None
    assert got.extra_bytes is None


def test_a_wrong_gradient_does_not_matter_without_backward():
    assert outcome(Provider("planted", lambda: WRONG["gradient"]), backward=False).status == "ok"


def test_a_missing_gradient_is_wrong():
    def detached(student, teacher):
        return loss(student.detach(), teacher).requires_grad_()

    assert outcome(Provider("planted", lambda: detached)).reason == "there is no gradient"


def fail(*args):
    raise RuntimeError("out of memory\nand more")


@pytest.mark.parametrize("ours", [False, True])
@pytest.mark.parametrize("provider", [("a", lambda: fail), ("a", fail)], ids=["call", "build"])
def test_a_failure_is_reported(provider, ours):
    got = outcome(Provider(*provider, ours=ours))
    assert (got.status, got.reason, got.time) == ("failed", "RuntimeError: out of memory", None)


@pytest.mark.parametrize("ours", [False, True])
def test_what_is_missing_is_not_built(ours):
    got = outcome(Provider("a", fail, missing="not installed", ours=ours))
    assert (got.status, got.reason, got.time) == ("missing", "not installed", None)


@pytest.mark.parametrize("near", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", kd.KINDS)
def test_this_library_and_eager_code_are_right(kind, dtype, near):
    case = rows_case(divergence=kd.KINDS[kind](), dtype=dtype, near=near)
    measurement = measure(case, case.providers(["kd", "eager"], ["auto"]), seconds=0)
    assert [(o.provider, o.status, o.reason) for o in measurement.outcomes] == [
        ("kd-cpu", "ok", None),
        ("eager", "ok", None),
    ]
    assert all(o.time.samples >= 5 for o in measurement.outcomes)


def test_compiled_code_is_right():
    case = rows_case()
    [got] = measure(case, case.providers(["compile"], []), seconds=0).outcomes
    assert got.status == "ok"
    assert got.first_call_seconds > got.time.median


def test_an_impossible_backend_is_missing():
    [provider] = rows_case(dtype=torch.float64, device="meta").providers(["kd"], ["cpu"])
    assert provider.missing == "backend 'cpu' does not support float64 logits on meta"


def test_peers_are_asked_only_for_kinds_they_know():
    for kind, peers in {"tvd": ["liger"], "jsd": ["liger", "trl"], "akl": []}.items():
        case = rows_case(divergence=kd.KINDS[kind]())
        assert [p.name for p in case.providers(["liger", "trl"], ["auto"])] == peers


def test_inputs_follow_the_seed_and_repeat_few_rows():
    student, teacher = rows_case().make().inputs
    assert torch.equal(student, rows_case().make().inputs[0])
    assert not torch.equal(student, rows_case(seed=1).make().inputs[0])
    assert torch.equal(teacher[:8], teacher[8:16])
    assert len(student.detach().unique(dim=0)) == 8
    assert student.is_leaf
    assert not teacher.requires_grad


@pytest.mark.parametrize(("dtype", "size"), [(torch.float32, 4), (torch.bfloat16, 2)])
def test_bytes(dtype, size):
    case = rows_case(dtype=dtype)
    assert case.unit_bytes == 19 * 100 * size
    assert case.work == 3 * 19 * 100 * size
    assert rows_case(dtype=dtype, backward=False).work == 2 * 19 * 100 * size
    assert case.make().floor.times == 1.5  # a copy moves two


def test_derived_figures():
    case = rows_case()  # one tensor of logits has 7,600 bytes
    ours = Outcome("kd-cpu", True, "ok", extra_bytes=15_200, time=Spread(1.0, 2.0, 3.0, 5))
    eager = Outcome("eager", False, "ok", time=Spread(9.0, 10.0, 12.0, 5))
    compiled = Outcome("compile", False, "failed", "no compiler")
    m = Measurement(case, (ours, eager, compiled), floor=Spread(0.15, 0.3, 0.6, 5))
    assert m.rate(ours) == pytest.approx(11_400)
    assert m.times_floor(ours) == pytest.approx(2 / 0.3)
    assert m.speedup(ours, "eager") == 5
    assert m.speedup(ours, "compile") is None
    assert m.memory_ratio(ours) == 2
    assert m.memory_ratio(eager) is None
