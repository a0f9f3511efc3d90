"""The target `transport`: right results pass, wrong ones do not, and the truth is that of the library's reference."""

from argparse import Namespace
from dataclasses import replace

import pytest
import torch

import kd_kernels as kd
from kd_kernels.benchmark import memory, transport, transport_truth
from kd_kernels.benchmark import transport_eager as by_hand
from kd_kernels.benchmark.case import Provider
from kd_kernels.benchmark.measure import Outcome, measure
from kd_kernels.benchmark.memory import extra_peak_bytes
from kd_kernels.benchmark.transport import SinkDCase, SinkhornCase, SortedL1Case
from kd_kernels.cli import main

BACKENDS = ["cpu", "reference"]
PEERS = {"sinkd": ["eager"], "sinkhorn": ["eager", "plain"], "sorted_l1": ["eager"]}


def case_of(kind: str, **changes) -> transport.TransportCase:
    settings = {"dtype": torch.float32, "device": "cpu", "backward": True}
    cls, sizes = {
        "sinkd": (SinkDCase, {"rows": 9, "vocab": 200}),
        "sinkhorn": (SinkhornCase, {"batch": 11, "rows": 7}),
        "sorted_l1": (SortedL1Case, {"rows": 11, "vocab": 200}),
    }[kind]
    return cls(**(settings | sizes | changes))


def outcome(kind: str, loss, **changes) -> Outcome:
    return measure(case_of(kind, **changes), [Provider("planted", lambda: loss)], seconds=0).outcomes[0]


def sinkd(student, teacher, **options):
    cost = kd.l1_cost(student, teacher, temperature=2.0, backend="reference")
    return kd.sinkhorn(cost, **options, backend="reference").value


def sinkhorn(cost, **options):
    return kd.sinkhorn(cost, "uniform", "uniform", **options, backend="reference").value.mean()


def sorted_l1(student, teacher, **options):
    return kd.sorted_l1(student, teacher, **options, backend="reference")


LOSSES = {"sinkd": sinkd, "sinkhorn": sinkhorn, "sorted_l1": sorted_l1}


class Scaled(torch.autograd.Function):
    """x with `factor` times the gradient; a tensor: entry by entry."""

    @staticmethod
    def forward(ctx, x, factor):
        ctx.factor = factor
        return x.clone()

    @staticmethod
    def backward(ctx, upstream):
        return ctx.factor * upstream, None


def last_part_off(x):
    return (torch.arange(len(x)) != len(x) - 1).float().reshape(-1, *[1] * (x.dim() - 1)) + 1


WRONG = {
    "value": lambda loss: lambda x, *rest: 1.01 * loss(x, *rest),
    "nan": lambda loss: lambda x, *rest: torch.nan * loss(x, *rest),
    "gradient": lambda loss: lambda x, *rest: loss(Scaled.apply(x, 1.1), *rest),
    "gradient of the last part": lambda loss: lambda x, *rest: loss(Scaled.apply(x, last_part_off(x)), *rest),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("kind", LOSSES)
def test_a_wrong_result_gets_no_time(kind, wrong, dtype):
    got = outcome(kind, WRONG[wrong](LOSSES[kind]), dtype=dtype)
    assert (got.status, got.time) == ("wrong", None)
    assert got.reason.startswith("the gradient is off by" if "gradient" in wrong else "the loss is off by")


@pytest.mark.parametrize(
    ("kind", "options", "part"),
    [
        ("sinkd", {"eps": 0.11}, "loss"),
        ("sinkd", {"order": "columns_first"}, "loss"),
        ("sinkd", {"grad": "detached"}, "gradient"),
        ("sinkhorn", {"iterations": 19}, "loss"),
        ("sinkhorn", {"eps": 0.101}, "loss"),
        ("sinkhorn", {"order": "columns_first"}, "loss"),
        ("sinkhorn", {"grad": "detached"}, "gradient"),
        ("sinkhorn", {"grad": "implicit"}, "gradient"),
        ("sorted_l1", {"temperature": 1.01}, "loss"),
        ("sorted_l1", {"top_k": 150}, "loss"),
    ],
)
def test_another_problem_is_wrong(kind, options, part):
    got = outcome(kind, lambda *inputs: LOSSES[kind](*inputs, **options))
    assert got.status == "wrong"
    assert got.reason.startswith(f"the {part} is off by")


@pytest.mark.parametrize("kind", LOSSES)
def test_a_missing_gradient_is_wrong(kind):
    got = outcome(kind, lambda x, *rest: LOSSES[kind](x.detach(), *rest).requires_grad_())
    assert got.reason == "there is no gradient"
    assert outcome(kind, LOSSES[kind], backward=False).status == "ok"


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", LOSSES)
def test_this_library_and_plain_pytorch_are_right(kind, dtype, backward):
    case = case_of(kind, dtype=dtype, backward=backward)
    measurement = measure(case, case.providers(["kd", "eager", "plain"], BACKENDS), seconds=0)
    assert [(o.provider, o.status, o.reason) for o in measurement.outcomes] == [
        (name, "ok", None) for name in [*(f"kd-{backend}" for backend in BACKENDS), *PEERS[kind]]
    ]
    assert measurement.floor is None


@pytest.mark.parametrize("kind", LOSSES)
def test_compiled_code_is_right(kind):
    case = case_of(kind, **({} if kind == "sorted_l1" else {"iterations": 2}))
    [got] = measure(case, case.providers(["compile"], []), seconds=0).outcomes
    assert (got.status, got.reason) == ("ok", None)


@pytest.mark.parametrize("backward", [False, True])
def test_pot_is_right(backward):
    pytest.importorskip("ot")
    case = case_of("sinkhorn", backward=backward)
    [got] = measure(case, case.providers(["pot"], []), seconds=0).outcomes
    assert (got.status, got.reason) == ("ok", None)


@pytest.mark.parametrize("kind", LOSSES)
def test_the_truth_is_that_of_the_reference(kind, monkeypatch):
    """In float64, of inputs that repeat fewer."""
    monkeypatch.setattr(transport, "DISTINCT_PAIRS", 4)
    case = case_of(kind, dtype=torch.float64)
    leaf, *rest = case.make().inputs
    loss = LOSSES[kind](leaf, *rest)
    loss.backward()
    distinct = len(leaf.detach().unique(dim=0))
    assert distinct < len(leaf)
    if kind == "sinkhorn":
        cost = leaf[:distinct]
        right = transport_truth.sinkhorn_truth(cost, case.batch, eps=0.1, iterations=20, backward=True)
    else:
        right = case.truth(*case.pair())
    torch.testing.assert_close(loss, right.loss)
    torch.testing.assert_close(leaf.grad[:distinct], right.gradient)


@pytest.mark.parametrize("kind", LOSSES)
def test_forms_by_hand(kind):
    inputs = [x.detach() for x in case_of(kind, dtype=torch.float64).make().inputs]
    options = {} if kind == "sorted_l1" else {"eps": 0.2, "iterations": 3}
    forms = [getattr(by_hand, kind), *[by_hand.sinkhorn_plain] * (kind == "sinkhorn")]
    for form in forms:
        got = form(*inputs, **options, **({"temperature": 2.0} if kind == "sinkd" else {}))
        torch.testing.assert_close(got, LOSSES[kind](*inputs, **options))


def test_a_tie_may_be_broken_either_way():
    """The likeliest two entries of the student are equal, and one of them is to be larger, the other smaller."""
    student = torch.tensor([[2.0, 2.0, 0.0, -1.0]])
    teacher = torch.tensor([[3.0, 0.5, 0.0, -1.0]])
    right = transport_truth.sorted_l1_truth(student, teacher, 1, backward=True)
    for order in ([0, 1, 2, 3], [1, 0, 2, 3]):
        leaf = student[:, order].clone().requires_grad_()
        loss = sorted_l1(leaf, teacher)
        loss.backward()
        leaf.grad = leaf.grad[:, order]
        assert right.complaint(loss, leaf) is None
    leaf.grad[0, 2] += 0.5
    assert right.complaint(loss, leaf).startswith("the gradient is off by")


def test_slack_is_for_what_rounding_decides_alone():
    for kind in ("sinkd", "sorted_l1"):
        case = case_of(kind, rows=8, vocab=5000)
        right = case.truth(*case.pair())
        ample = right.slack > 1e-4 * right.gradient.abs().max()
        assert ample.float().mean() < 1e-3


def test_work_and_bytes():
    assert case_of("sinkd").work == 2 * 9 * 9 * 200
    assert case_of("sinkhorn", iterations=5).work == 6 * 5 * 11 * 7 * 7
    assert case_of("sorted_l1").work == 3 * 11 * 200 * 4
    forward = [case_of(kind, backward=False).work for kind in LOSSES]
    assert forward == [9 * 9 * 200, 2 * 20 * 11 * 7 * 7, 2 * 11 * 200 * 4]
    assert [case_of(kind, dtype=torch.bfloat16).unit_bytes for kind in LOSSES] == [3600, 1078, 4400]


def test_what_would_not_fit_is_not_tried(monkeypatch):
    monkeypatch.setattr(memory, "_available_bytes", lambda device: 10**9)
    case = case_of("sinkhorn", batch=10, rows=1000, iterations=20)
    skipped = {p.name: p.skip for p in case.providers(["kd", "eager", "plain", "pot"], BACKENDS)}
    assert {skipped.pop(f"kd-{backend}") for backend in BACKENDS} == {None}
    assert set(skipped.values()) == {"may need 3.3 GB of memory, 1.0 GB are free"}
    # On a GPU the gradient of cdist takes a tensor of all differences.
    case = case_of("sinkd", rows=512, vocab=151_936)
    assert case.dense_bytes == 5 * 4 * 512 * 151_936
    assert replace(case, device="cuda").dense_bytes == (512 + 5) * 4 * 512 * 151_936


@pytest.mark.parametrize(
    ("kind", "sizes"),
    [
        ("sinkd", {"rows": 16, "vocab": 1 << 19 | 1}),  # larger than what the allocator keeps
        ("sinkhorn", {"batch": 1024, "rows": 64, "iterations": 10}),
        ("sorted_l1", {"rows": 16, "vocab": 1 << 19 | 1}),
    ],
)
def test_what_plain_pytorch_holds(kind, sizes):
    case = case_of(kind, **sizes)
    problem = case.make()
    held = {}
    for provider in case.providers(["eager", "plain"], []):
        loss = provider.build()

        def step(loss=loss):
            problem.clear()
            loss(*problem.inputs).backward()

        step()
        problem.clear()
        held[provider.name] = extra_peak_bytes(step, "cpu")
    if None in held.values():
        pytest.skip("this system does not tell")
    assert 0.5 * case.dense_bytes < max(held.values()) < 1.05 * case.dense_bytes


@pytest.mark.parametrize(
    ("options", "sizes"),
    [
        ({}, [(16, 50), (64, 50), (256, 64), (1, 64), (1, 512), (64, 50)]),
        ({"rows": 8}, [(8, 50), (256, 8), (8, 50)]),
        ({"batch": 2}, [(16, 50), (64, 50), (2, 64), (64, 50)]),
        ({"rows": 4, "tiny": True}, [(4, 50), (1, 4), (4, 50)]),
    ],
)
def test_regimes(options, sizes):
    """(rows, vocab) of sinkd and sorted_l1, (batch, rows) of sinkhorn."""
    given = dict.fromkeys(("rows", "batch", "iterations", "eps", "tiny"))
    shared = {"vocab": 50, "dtype": ["float32"], "device": "cpu", "direction": "forward", "seed": 0, "logit_scale": 3.0}
    found = transport.cases(Namespace(**given | shared | {"kind": transport.KINDS} | options))
    assert [tuple(case.sizes.values())[:2] for case in found] == sizes
    assert {case.sizes.get("iterations", 20) for case in found} == {20}


def test_table_and_files(tmp_path, capsys):
    out = {kind: tmp_path / f"out.{kind}" for kind in ("json", "csv", "svg")}
    files = ["--json", str(out["json"]), "--csv", str(out["csv"]), "--plot", str(out["svg"])]
    options = ["--tiny", "--providers", "kd,eager", "--seconds", "0.01", "--eps", "0.3"]
    assert main(["bench", "transport", *options, *files]) == 0
    printed = capsys.readouterr().out
    assert "transport: batch 1, rows 4, iterations 20, float32, forward+backward, cpu, eps 0.3" in printed
    for kind in LOSSES:
        assert printed.count(f"{kind:<16} kd-cpu") == 1
    assert "x floor" not in printed
    assert "x eager      x pot   GFMA/s" in printed
    assert all(path.stat().st_size for path in out.values())


def test_a_sweep_of_iterations(tmp_path, capsys):
    path = tmp_path / "out.svg"
    options = ["--batch", "3", "--rows", "5", "--providers", "kd,eager", "--seconds", "0.01"]
    sweep = ["--kind", "sinkhorn", "--sweep", "iterations=2,4", "--plot", str(path)]
    assert main(["bench", "transport", *options, *sweep]) == 0
    printed = capsys.readouterr().out
    assert [f"batch 3, rows 5, iterations {n}," in printed for n in (2, 4)] == [True, True]
    assert "<svg" in path.read_text()
