"""The op over chunks under PyTorch's own checks, and its losses under compile, autocast and autograd."""

import pytest
import torch
from pairs import PAIRS, Pair, evaluate, make
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses.fake_tensor import FakeTensorMode

import kd_kernels as kd
from kd_kernels import ops
from kd_kernels.backends.select import implementation
from kd_kernels.chunks import run

OP = torch.ops.kd_kernels.chunked_divergence.default
ROWS = 61

each_pair = pytest.mark.parametrize(("student", "teacher"), PAIRS, ids=["-".join(p) for p in PAIRS])
each_reduction = pytest.mark.parametrize("reduction", ["mean", "sum", "none"])


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch.compiler.reset()


def arguments(student, teacher, monkeypatch, *, dtype=torch.float32, **options) -> list[tuple]:
    """What `divergence` hands to the op, forward and, for per-row losses, backward."""
    calls = []
    original = ops.chunked_divergence
    monkeypatch.setattr(ops, "chunked_divergence", lambda *args: calls.append(args) or original(*args))
    evaluate(make(student, teacher, dtype, rows=5, vocab=40), "jsd", **options)
    monkeypatch.setattr(ops, "chunked_divergence", original)
    return [tuple(x.detach() if isinstance(x, torch.Tensor) else x for x in args) for args in calls]


class TestOpcheck:
    @each_pair
    @each_reduction
    def test_pairs(self, reduction, student, teacher, monkeypatch):
        mask = torch.tensor([1.0, 0.0, 0.5, 2.0, 1.0])
        calls = arguments(student, teacher, monkeypatch, reduction=reduction, mask=mask, chunk_tokens=2)
        assert len(calls) == 1 + (reduction == "none")
        for call in calls:
            torch.library.opcheck(OP, call)

    @pytest.mark.parametrize(
        "options", [{"memory_budget": 20_000}, {"normalizer": torch.tensor(2.0), "reduction": "mean"}]
    )
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
    def test_options(self, dtype, options, monkeypatch):
        (call,) = arguments("head", "head", monkeypatch, dtype=dtype, **options)
        torch.library.opcheck(OP, call)

    @each_pair
    def test_fakes(self, student, teacher, monkeypatch):
        for call in arguments(student, teacher, monkeypatch, reduction="none"):
            with FakeTensorMode() as mode:
                fake = OP(*(mode.from_tensor(x) if isinstance(x, torch.Tensor) else x for x in call))
            for a, b in zip(fake, OP(*call), strict=True):
                assert (a.shape, a.dtype, a.stride(), a.device) == (b.shape, b.dtype, b.stride(), b.device)


class TestCompile:
    @each_pair
    @pytest.mark.parametrize("reduction", ["mean", "none"])
    def test_same_bits_as_eager(self, reduction, student, teacher):
        pair, mask = make(student, teacher), torch.arange(ROWS) % 3

        def loss(*parts):
            student_side = kd.Head(*parts[:3]) if student == "head" else parts[0]
            return kd.divergence(student_side, pair.teacher, "todi", mask=mask, reduction=reduction).sum() * 3

        def run(f):
            leaves = list(pair.leaves.values())
            return torch.autograd.grad(f(*leaves), leaves)

        counter = CompileCounterWithBackend("aot_eager")
        actual = run(torch.compile(loss, backend=counter, fullgraph=True))
        for a, b in zip(actual, run(loss), strict=True):
            assert torch.equal(a, b)
        assert counter.frame_count == 1

    def test_no_compilation_per_number_of_rows(self):
        pair = make("head", "head", rows=64)
        counter = CompileCounterWithBackend("aot_eager")

        @torch.compile(backend=counter, fullgraph=True, dynamic=True)
        def loss(hidden, hidden_t, mask):
            student = kd.Head(hidden, pair.student.weight, pair.student.bias)
            return kd.divergence(student, kd.Head(hidden_t, pair.teacher.weight), "jsd", mask=mask)

        def step(n):
            return loss(pair.student.hidden[:n], pair.teacher.hidden[:n], torch.arange(n) % 3)

        step(10)
        with torch.compiler.set_stance("fail_on_recompile"):
            for n in (17, 64):
                side = kd.Head(pair.student.hidden[:n], pair.student.weight, pair.student.bias)
                other = kd.Head(pair.teacher.hidden[:n], pair.teacher.weight)
                assert torch.equal(step(n), kd.divergence(side, other, "jsd", mask=torch.arange(n) % 3))

    def test_with_inductor(self):
        pair = make("head", "bucket")

        def loss(hidden):
            return kd.divergence(kd.Head(hidden * 2, pair.student.weight), pair.teacher, "reverse_kl")

        (expected,) = torch.autograd.grad(loss(pair.student.hidden), pair.student.hidden)
        (actual,) = torch.autograd.grad(torch.compile(loss, fullgraph=True)(pair.student.hidden), pair.student.hidden)
        torch.testing.assert_close(actual, expected)


class TestAutocast:
    def test_products_run_in_its_dtype(self):
        """Float32 master weights: the numbers of bfloat16 ones, gradients in float32."""
        pair = make("head", "head")
        with torch.autocast("cpu", torch.bfloat16):
            actual = evaluate(pair, "jsd")
        low = evaluate(pair.to(torch.bfloat16), "jsd")
        assert torch.equal(actual["loss"], low["loss"])
        for name, value in low.items():
            assert actual[name].dtype == torch.float32
            torch.testing.assert_close(actual[name], value.float(), rtol=1e-2, atol=1e-3)

    def test_weight_gradient_is_not_rounded(self):
        """Each product of bfloat16 factors goes into the float32 gradient as it is."""
        pair = make("head", "head", rows=512, hidden=48, vocab=90)
        with torch.autocast("cpu", torch.bfloat16):
            one = evaluate(pair, "jsd", chunk_tokens=512)["weight"]
            many = evaluate(pair, "jsd", chunk_tokens=4)["weight"]
        torch.testing.assert_close(one, many, rtol=1e-5, atol=1e-5)

    def test_weight_of_another_dtype_follows_the_hidden_states(self):
        pair = make("head", "head")
        mixed = Pair(kd.Head(pair.student.hidden.bfloat16().detach(), pair.student.weight), pair.teacher)
        low = kd.Head(pair.student.hidden.bfloat16().detach(), pair.student.weight.bfloat16())
        assert torch.equal(kd.divergence(mixed.student, pair.teacher), kd.divergence(low, pair.teacher))

    def test_float64_is_left_alone(self):
        pair = make("head", "head", torch.float64)
        expected = evaluate(pair, "jsd")
        with torch.autocast("cpu", torch.bfloat16):
            actual = evaluate(pair, "jsd")
        assert all(torch.equal(actual[name], value) for name, value in expected.items())


class TestAutograd:
    @pytest.mark.parametrize("reduction", ["mean", "none"])
    def test_retain_graph(self, reduction):
        pair = make("head", "head")
        leaves = list(pair.leaves.values())
        loss = kd.divergence(pair.student, pair.teacher, reduction=reduction).sum() * 3
        passes = [torch.autograd.grad(loss, leaves, retain_graph=keep) for keep in (True, True, False)]
        for other in passes[1:]:
            assert all(torch.equal(a, b) for a, b in zip(passes[0], other, strict=True))

    @pytest.mark.parametrize("reduction", ["mean", "none"])
    def test_second_derivatives_are_refused(self, reduction):
        pair = make("head", "head")
        loss = kd.divergence(pair.student, pair.teacher, reduction=reduction).sum()
        (gradient,) = torch.autograd.grad(loss, pair.student.hidden, create_graph=True)
        with pytest.raises(RuntimeError, match="first derivatives only; use backend='reference' for second ones"):
            gradient.square().sum().backward()

    @pytest.mark.parametrize("teacher", ["head", "bucket", "truncate"])
    def test_gradcheck(self, teacher):
        pair = make("head", teacher, torch.float64, rows=3 if teacher == "head" else 5, vocab=20, hidden=3, k=3)

        def loss(hidden, weight, bias):
            return kd.divergence(kd.Head(hidden, weight, bias, softcap=4.0), pair.teacher, "jsd", reduction="none")

        assert torch.autograd.gradcheck(loss, tuple(pair.leaves.values()))


class TestDeterminism:
    @each_pair
    @pytest.mark.parametrize("budget", [None, 100_000])
    def test_same_bits_again_and_with_any_number_of_threads(self, budget, student, teacher):
        pair = make(student, teacher)
        expected = evaluate(pair, "jsd", memory_budget=budget)
        before = torch.get_num_threads()
        try:
            for threads in (before, 1, 3):
                torch.set_num_threads(threads)
                for name, value in evaluate(pair, "jsd", memory_budget=budget).items():
                    assert torch.equal(value, expected[name]), name
        finally:
            torch.set_num_threads(before)

    def test_a_row_does_not_depend_on_the_others(self):
        """Its loss has the same bits in any batch that is projected in chunks of the same size."""
        pair = make("head", "head", rows=64)
        whole = kd.divergence(pair.student, pair.teacher, reduction="none", chunk_tokens=16)
        part = kd.divergence(
            kd.Head(pair.student.hidden[16:48], pair.student.weight, pair.student.bias),
            kd.Head(pair.teacher.hidden[16:48], pair.teacher.weight), reduction="none", chunk_tokens=16,
        )  # fmt: skip
        assert torch.equal(whole[16:48], part)


@pytest.mark.parametrize("budget", [None, 100_000])
def test_without_synchronisation_masked_rows_stay(budget, monkeypatch):
    """Compiled or captured on a GPU: no look at the mask from the host, the same numbers, whatever masked rows hold.
    Here with the look out of the way."""
    pair, mask = make("head", "head"), torch.arange(ROWS) % 3
    expected = evaluate(pair, "jsd", mask=mask, memory_budget=budget)
    with torch.no_grad():
        pair.student.hidden[mask == 0] = float("nan")
        pair.teacher.hidden[mask == 0] = float("nan")
    monkeypatch.setattr(run, "_waits", lambda weight, on_device: False)
    for name, value in evaluate(pair, "jsd", mask=mask, memory_budget=budget).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-6)


def test_backends_have_the_same_functions():
    for name in ("row_losses", "tail_logits", "tail_gradient", "slice_statistics", "slice_sums", "slice_gradient",
                 "empty_gradient", "OUTER_PRODUCT_DTYPES"):  # fmt: skip
        assert hasattr(implementation("cpu"), name)
        assert hasattr(implementation("triton"), name)
