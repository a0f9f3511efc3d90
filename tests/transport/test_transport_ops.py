"""The ops of transport under PyTorch's own checks, and the losses under compilation, autocast and accumulation."""

import pytest
import torch
from problems import leaves, random_problem

import kd_kernels as kd

OPS = torch.ops.kd_kernels
each_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch.compiler.reset()


def problem(dtype, marginals=True, ragged=True):
    cost, a, b = random_problem(5, 4, 3, dtype)
    eps = torch.tensor([0.1, 0.2, 0.3]).double()
    lengths = torch.tensor([[5, 4], [2, 4], [0, 1]]) if ragged else None
    return (cost, a, b, eps, lengths) if marginals else (cost, None, None, eps, lengths)


class TestOpcheck:
    @pytest.mark.parametrize(
        ("dtype", "flags", "value", "backend"),
        [
            (torch.float32, (True, True), "transport", "cpu"),
            (torch.float32, (False, True), "entropic", "cpu"),
            (torch.bfloat16, (True, False), "entropic", "cpu"),
            (torch.float64, (False, False), "transport", "cpu"),
            (torch.float64, (True, True), "entropic", "reference"),
            (torch.bfloat16, (False, False), "transport", "reference"),
        ],
    )
    def test_sinkhorn(self, dtype, flags, value, backend):
        real = torch.float64 if dtype == torch.float64 else torch.float32
        for arguments, start in ((problem(dtype), torch.zeros(3, 4, dtype=real)), (problem(dtype, False, False), None)):
            torch.library.opcheck(OPS.sinkhorn.default, (*arguments, start, 6, 0.01, value, *flags, backend))

    @pytest.mark.parametrize(
        ("dtype", "wanted"),
        [
            (torch.float32, [True, True, True]),
            (torch.bfloat16, [True, False, False]),
            (torch.float64, [False, True, False]),
        ],
    )
    def test_sinkhorn_backward(self, dtype, wanted):
        cost, a, b, eps, lengths = problem(dtype)
        *_, run, _, history, offsets = OPS.sinkhorn(
            cost, a, b, eps, lengths, None, 6, -1.0, "transport", False, True, "cpu"
        )
        upstream = torch.ones(3, dtype=a.dtype)
        for plan_upstream in (None, torch.randn(3, 5, 4, dtype=a.dtype)):
            torch.library.opcheck(
                OPS.sinkhorn_backward.default,
                (upstream, plan_upstream, cost, a, b, eps, lengths, run, history, offsets, "transport", wanted, "cpu"),
            )

    def test_sinkhorn_adjoint(self):
        torch.library.opcheck(OPS.sinkhorn_adjoint.default, (torch.rand(2, 3, 4), torch.rand(2, 3), torch.rand(2, 4)))

    @each_dtype
    @pytest.mark.parametrize("softmax", [True, False])
    def test_l1_cost(self, dtype, softmax):
        student, teacher = torch.randn(2, 3, 9).to(dtype), torch.randn(2, 4, 11).to(dtype)
        for masks in ((None, None), (torch.rand(2, 3) < 0.5, torch.rand(2, 4) < 0.5)):
            pair = (student, teacher, *masks, [0.5, 1.0], 8, softmax, "cpu")
            torch.library.opcheck(OPS.l1_cost.default, pair)
            cost, statistics = OPS.l1_cost(*pair)
            torch.library.opcheck(OPS.l1_cost_backward.default, (torch.randn_like(cost), statistics, *pair))

    @each_dtype
    @pytest.mark.parametrize("with_gradient", [True, False])
    def test_sorted_l1(self, dtype, with_gradient):
        student, teacher = torch.randn(3, 9).to(dtype), torch.randn(3, 7).to(dtype)
        factor = torch.tensor([1.0, 0.0, 2.0]).to(torch.float64 if dtype == torch.float64 else torch.float32)
        for f in (None, factor):
            torch.library.opcheck(
                OPS.sorted_l1.default, (student, teacher, f, [1.0, 0.5], 5, with_gradient, "cpu")
            )  # fmt: skip


def losses():
    """name -> loss of student and teacher logits (5, 12) and (4, 12)."""
    return {
        "unrolled": lambda s, t: kd.sinkhorn(kd.l1_cost(s, t, temperature=2.0)).value,
        "tol": lambda s, t: kd.sinkhorn(kd.l1_cost(s, t), iterations=50, tol=1e-3, lengths=(3, 4)).value,
        "implicit": lambda s, t: kd.sinkhorn(kd.l1_cost(s, t), "uniform", "uniform", grad="implicit").value,
        "entropic": lambda s, t: kd.sinkhorn(kd.l1_cost(s, t), value="entropic", grad="envelope").value,
        "plan": lambda s, t: kd.sinkhorn(kd.l1_cost(s, t), order="columns_first", return_plan=True).plan[0, 0],
        "sorted": lambda s, t: kd.sorted_l1(s[:4], t[:, :9], top_k=5),
        "sorted rows": lambda s, t: kd.sorted_l1(s[:4], t[:, :9], mask=t[:, 0] > 0, reduction="none").sum(),
    }


each_loss = pytest.mark.parametrize("name", losses())


def value_and_gradient(loss, student, teacher):
    (leaf,) = leaves(student)
    value = loss(leaf, teacher)
    (gradient,) = torch.autograd.grad(value, leaf)
    return value.detach(), gradient


@each_loss
def test_compiled_in_one_graph(name):
    loss = losses()[name]
    student, teacher = torch.randn(5, 12), torch.randn(4, 12)
    expected = value_and_gradient(loss, student, teacher)
    found = value_and_gradient(torch.compile(loss, fullgraph=True, backend="aot_eager"), student, teacher)
    for x, y in zip(found, expected, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-6, atol=1e-7)


@each_loss
def test_without_gradients(name):
    loss = losses()[name]
    student, teacher = torch.randn(5, 12), torch.randn(4, 12)
    (leaf,) = leaves(student)
    with torch.no_grad():
        value = loss(leaf, teacher)
    assert not value.requires_grad
    torch.testing.assert_close(value, loss(leaf, teacher).detach(), rtol=1e-6, atol=1e-7)


@each_loss
def test_accumulation_and_scale(name):
    loss = losses()[name]
    student, teacher = torch.randn(5, 12), torch.randn(4, 12)
    _, gradient = value_and_gradient(loss, student, teacher)
    (leaf,) = leaves(student)
    for scale in (0.5, 2.0):
        (scale * loss(leaf, teacher)).backward()
    torch.testing.assert_close(leaf.grad, 2.5 * gradient, rtol=1e-5, atol=1e-7)


def test_autocast_leaves_the_losses_alone():
    student, teacher = torch.randn(5, 12), torch.randn(4, 12)
    for loss in losses().values():
        expected = value_and_gradient(loss, student, teacher)
        with torch.autocast("cpu", torch.bfloat16):
            found = value_and_gradient(loss, student, teacher)
        assert all(torch.equal(x, y) for x, y in zip(found, expected, strict=True))


def test_the_teacher_gets_no_gradient():
    student, teacher = leaves(torch.randn(5, 12), torch.randn(4, 12))
    for loss in losses().values():
        loss(student, teacher).backward()
    assert teacher.grad is None
