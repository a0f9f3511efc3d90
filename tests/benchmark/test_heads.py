"""The target `heads`: right results pass, wrong ones do not, and the plan is the one that runs."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F  # noqa: N812

import kd_kernels as kd
from kd_kernels.benchmark import eager, memory
from kd_kernels.benchmark.case import Provider
from kd_kernels.benchmark.heads import HeadsCase
from kd_kernels.benchmark.measure import Outcome, measure
from kd_kernels.benchmark.products import Products
from kd_kernels.chunks import plan


def heads_case(**changes) -> HeadsCase:
    settings = {"divergence": kd.ForwardKL(), "rows": 19, "vocab": 100, "dtype": torch.float32, "device": "cpu"}
    settings |= {"backward": True, "hidden": 12, "teacher_hidden": 20}
    return HeadsCase(**(settings | changes))


def dense(hidden, weight, teacher_hidden, teacher_weight, mask=None):
    rows = slice(None) if mask is None else mask
    return eager.loss(kd.ForwardKL(), F.linear(hidden[rows], weight), F.linear(teacher_hidden[rows], teacher_weight))


def outcome(loss, **changes) -> Outcome:
    return measure(heads_case(**changes), [Provider("planted", lambda: loss)], seconds=0).outcomes[0]


class Scaled(torch.autograd.Function):
    """x with `factor` times the gradient; a tensor: entry by entry."""

    @staticmethod
    def forward(ctx, x, factor):
        ctx.factor = factor
        return x.clone()

    @staticmethod
    def backward(ctx, upstream):
        return ctx.factor * upstream, None


def but_for(entry: int, size: int) -> torch.Tensor:
    return (torch.arange(size) != entry).float()[:, None]


WRONG = {
    "loss": lambda h, w, *rest: 1.01 * dense(h, w, *rest),
    "hidden states": lambda h, w, *rest: dense(Scaled.apply(h, 1.1), w, *rest),
    "a row of the hidden states": lambda h, w, *rest: dense(Scaled.apply(h, but_for(18, 19)), w, *rest),
    "weight": lambda h, w, *rest: dense(h, Scaled.apply(w, 1.1), *rest),
    "likeliest row of the weight": lambda h, w, *rest: dense(
        h, Scaled.apply(w, but_for(int((F.linear(*rest[:2]) - F.linear(h, w)).abs().sum(0).argmax()), 100)), *rest
    ),
    "rows left out": lambda h, w, ht, wt, *mask: dense(h[:-1], w, ht[:-1], wt),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_result_gets_no_time(wrong, dtype):
    got = outcome(WRONG[wrong], dtype=dtype)
    assert (got.status, got.time) == ("wrong", None)
    part = next((part for part in ("loss", "hidden states", "weight") if part in wrong), "loss")
    assert got.reason.startswith("the loss" if part == "loss" else f"the gradient of the {part} is off by")


def test_rows_that_do_not_count_must_not():
    assert outcome(lambda *inputs: dense(*inputs[:4]), masked=0.5).status == "wrong"
    assert outcome(dense, masked=0.5).status == "ok"


def test_a_missing_gradient_is_wrong():
    assert outcome(lambda h, w, *rest: dense(h, w.detach(), *rest)).reason == "there is no gradient"
    assert outcome(lambda h, w, *rest: dense(h, w.detach(), *rest), frozen_head=True).status == "ok"


@pytest.mark.parametrize(
    "options", [{}, {"masked": 0.5}, {"frozen_head": True}, {"backward": False}, {"chunk_tokens": 4}]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["forward_kl", "jsd", "akl"])
def test_this_library_and_eager_code_are_right(kind, dtype, options):
    case = heads_case(divergence=kd.KINDS[kind](), dtype=dtype, **options)
    measurement = measure(case, case.providers(["kd", "eager"], ["auto"]), seconds=0)
    assert [(o.provider, o.status, o.reason) for o in measurement.outcomes] == [
        ("kd-cpu", "ok", None),
        ("eager", "ok", None),
    ]
    assert measurement.floor.samples >= 5


def test_compiled_code_is_right():
    case = heads_case(masked=0.5)
    [got] = measure(case, case.providers(["compile"], []), seconds=0).outcomes
    assert got.status == "ok"


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(("peer", "module"), [("liger", "liger_kernel"), ("trl", "trl")])
def test_peers_are_right(peer, module, beta):
    pytest.importorskip(module)
    kind = {0.0: kd.ForwardKL(), 0.5: kd.JSD(0.5), 1.0: kd.ReverseKL()}[beta]
    case = heads_case(divergence=kind, masked=0.5)
    with torch.compiler.set_stance("force_eager"):  # Liger compiles its loss
        [got] = measure(case, case.providers([peer], []), seconds=0).outcomes
    assert (got.status, got.reason) == ("ok", None)


def test_inputs_follow_the_seed_and_repeat_few_rows():
    hidden, weight, teacher_hidden, teacher_weight, mask = heads_case(masked=0.5).make().inputs
    assert all(
        torch.equal(a, b) for a, b in zip(heads_case().make().inputs, (hidden, weight, teacher_hidden), strict=False)
    )
    assert not torch.equal(weight, heads_case(seed=1).make().inputs[1])
    assert len(hidden.detach().unique(dim=0)) == len(teacher_hidden.unique(dim=0)) == 8
    assert (hidden.shape, weight.shape) == ((19, 12), (100, 12))
    assert (teacher_hidden.shape, teacher_weight.shape) == ((19, 20), (100, 20))
    assert int(mask.sum()) == 10
    assert hidden.is_leaf
    assert weight.is_leaf
    assert not teacher_weight.requires_grad


def test_the_scale_of_the_logits():
    hidden, weight, *_ = heads_case(vocab=5000, hidden=64, logit_scale=2.0).make().inputs
    assert F.linear(hidden, weight).std().item() == pytest.approx(2.0, rel=0.2)


def test_the_plan_is_the_one_that_runs(monkeypatch):
    ran = []
    choose = plan.choose
    monkeypatch.setattr(plan, "choose", lambda *args: ran.append((args, choose(*args))) or ran[-1][1])
    for options in ({}, {"masked": 0.5}, {"frozen_head": True}, {"backward": False}, {"chunk_tokens": 4},
                    {"dtype": torch.bfloat16}, {"memory_budget": 40_000}):  # fmt: skip
        case = heads_case(**options)
        problem = case.make()
        [ours] = case.providers(["kd"], ["auto"])
        ours.build()(*problem.inputs)
        case.remarks  # noqa: B018
        assert ran[-1] == ran[-2]
        assert case.planned_bytes == ran[-1][1].peak_bytes


def test_a_budget_that_nothing_fits():
    case = heads_case(memory_budget=1)
    assert case.planned_bytes is None
    [got] = measure(case, case.providers(["kd"], ["auto"]), seconds=0).outcomes
    assert got.status == "failed"
    assert "memory_budget must be at least" in got.reason


@pytest.mark.parametrize("chunk", [None, 4])
def test_products(chunk, monkeypatch):
    h, w, ht, wt = (torch.randn(*shape, dtype=torch.float64) for shape in ((9, 3), (50, 3), (9, 5), (50, 5)))
    if chunk:
        monkeypatch.setattr("kd_kernels.benchmark.products._WHOLE_BYTES", 0)
        monkeypatch.setattr("kd_kernels.benchmark.products._CHUNK_ROWS", chunk)
    products = Products(h, w, ht, wt, backward=True, frozen_head=False)
    for _ in range(2):
        products()
    logits = h @ w.T
    torch.testing.assert_close(products._hidden_gradient, logits @ w)
    torch.testing.assert_close(products._weight_gradient, logits.T @ h)


@pytest.mark.parametrize(
    ("options", "of_hidden", "of_teacher"),
    [({}, 3, 1), ({"frozen_head": True}, 2, 1), ({"backward": False}, 1, 1)],
)
def test_work(options, of_hidden, of_teacher):
    assert heads_case(**options).work == 2 * 19 * 100 * (12 * of_hidden + 20 * of_teacher)
    assert heads_case(**options, masked=0.5).work == 2 * 10 * 100 * (12 * of_hidden + 20 * of_teacher)


def test_what_would_not_fit_is_not_tried(monkeypatch):
    monkeypatch.setattr(memory, "_available_bytes", lambda device: 10**9)
    case = heads_case(rows=20_000, vocab=2500)  # a tensor of logits has 0.2 GB
    reasons = {p.name: p.skip for p in case.providers(["kd", "eager", "compile"], ["auto"])}
    assert reasons == {
        "kd-cpu": None,
        "eager": "may need 1.4 GB of memory, 1.0 GB are free",
        "compile": "may need 1.6 GB of memory, 1.0 GB are free",
    }
    assert all(p.skip is None for p in replace(case, masked=0.5).providers(["eager", "compile"], []))


def test_what_is_skipped_is_not_built():
    [got] = measure(heads_case(), [Provider("planted", lambda: 1 / 0, skip="too large")], seconds=0).outcomes
    assert (got.status, got.reason, got.time) == ("skipped", "too large", None)
