"""The ops under PyTorch's own checks, and the losses under what training does to them: compile, export, autocast,
accumulation, threads, second derivatives."""

import contextlib
import threading
import warnings

import pytest
import torch
from support import DEFAULTS, each_default, name, on_device
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses.fake_tensor import FakeTensorMode

import kd_kernels as kd
from kd_kernels import ops
from kd_kernels.testing.inputs import far_pair

OPS = torch.ops.kd_kernels
CASES = [("cpu", torch.float32), ("cpu", torch.bfloat16), ("cpu", torch.float64), ("triton", torch.float32)]
each_case = pytest.mark.parametrize(("backend", "dtype"), CASES, ids=lambda x: str(x).removeprefix("torch."))


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch.compiler.reset()


def forward_arguments(backend, dtype, layout=torch.clone, reduction="mean", columns=20, **flags):
    student, teacher = (layout(x) for x in on_device(backend, *far_pair(3, 24, dtype)))
    weight = on_device(backend, torch.tensor([1.0, 0.0, 0.5]))
    normalizer = on_device(backend, torch.tensor(2.0)) if flags.get("normalized") else None
    return (
        student, teacher, weight, normalizer, "jsd", [0.3, 0.0], [0.5, 1.0], 2.0, columns, reduction,
        flags.get("with_gradient", True), flags.get("with_entropy", True), backend,
    )  # fmt: skip


def transposed(x):
    return x.t().contiguous().t()


def padded(x):
    return torch.cat([x, x], -1)[:, : x.shape[1]]


def loss_and_gradient(student, teacher, *args, f=kd.divergence, **options):
    leaf = student.detach().clone().requires_grad_()
    loss = f(leaf, teacher, *args, **options)
    loss.sum().backward()
    return loss.detach(), leaf.grad


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


class TestOpcheck:
    """Schemas, fakes and the ahead-of-time dispatch."""

    @each_case
    @pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
    def test_forward(self, backend, dtype, reduction):
        torch.library.opcheck(OPS.divergence.default, forward_arguments(backend, dtype, reduction=reduction))

    @pytest.mark.parametrize(
        "flags", [{"with_gradient": False}, {"with_entropy": False}, {"reduction": "sum", "normalized": True}], ids=str
    )
    def test_optional_arguments_and_results(self, flags):
        torch.library.opcheck(OPS.divergence.default, forward_arguments("cpu", torch.float32, **flags))

    @pytest.mark.parametrize("layout", [transposed, padded])
    def test_layouts(self, layout):
        """Where a fake is most easily wrong: the gradient is contiguous whatever the logits are."""
        arguments = forward_arguments("cpu", torch.float32, layout)
        torch.library.opcheck(OPS.divergence.default, arguments)
        torch.library.opcheck(OPS.divergence_backward.default, (torch.ones(3), *arguments[:3], *arguments[4:9], "cpu"))

    @each_case
    def test_backward(self, backend, dtype):
        student, teacher, weight, _, *rest = forward_arguments(backend, dtype)
        upstream = torch.tensor([1.0, 2.0, -1.0]).to(student.device)
        arguments = (upstream, student, teacher, weight, *rest[:5], backend)
        torch.library.opcheck(OPS.divergence_backward.default, arguments)

    def test_every_op_is_checked(self):
        names = {n.removeprefix("kd_kernels::") for n in torch._C._dispatch_get_all_op_names() if "kd_kernels" in n}
        assert names == {
            "divergence", "divergence_backward",
            "chunked_divergence",  # in tests/heads/test_head_ops.py
            "sinkhorn", "sinkhorn_backward", "sinkhorn_adjoint", "l1_cost", "l1_cost_backward",
            "sorted_l1",  # in tests/transport/test_transport_ops.py
            "likeliest", "likeliest_backward", "smoothed_tvd",  # in tests/methods
        }  # fmt: skip


class TestFakes:
    """An op that looked at a number of a tensor would fail here, as it would stall a GPU."""

    @pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
    def test_shapes_and_dtypes(self, reduction):
        for backend, dtype in CASES:
            arguments = forward_arguments(backend, dtype, transposed, reduction=reduction)
            real = OPS.divergence(*arguments)
            with FakeTensorMode() as mode:
                fakes = [mode.from_tensor(x) if isinstance(x, torch.Tensor) else x for x in arguments]
                fake = OPS.divergence(*fakes)
            for a, b in zip(fake, real, strict=True):
                assert (a.shape, a.dtype, a.stride(), a.device) == (b.shape, b.dtype, b.stride(), b.device)

    def test_loss_of_fake_tensors(self):
        with FakeTensorMode():
            student = torch.randn(3, 8, requires_grad=True)
            mask, normalizer = torch.ones(3), torch.tensor(2.0)
            loss, stats = kd.divergence(student, torch.randn(3, 8), mask=mask, normalizer=normalizer, return_stats=True)
            assert loss.shape == stats.n_valid.shape == ()
            assert loss.requires_grad


def compiled(f, **options):
    """f compiled as one graph, and the counter of compilations."""
    counter = CompileCounterWithBackend("aot_eager")
    return torch.compile(f, fullgraph=True, backend=counter, **options), counter


class TestCompile:
    @pytest.mark.parametrize("kind", [kd.ReverseKL(), kd.ToDi(2.0), kd.AKL()], ids=name)
    @pytest.mark.parametrize("reduction", ["mean", "none"])
    @pytest.mark.parametrize("backend", ["cpu", "reference"])
    def test_same_bits_as_eager(self, kind, reduction, backend):
        student, teacher = far_pair(5, 40)
        mask = torch.tensor([1.0, 0.0, 0.5, 2.0, 1.0])
        options = {"mask": mask, "reduction": reduction, "temperature": 2.0, "backend": backend}

        def f(student, teacher, kind, **options):
            return kd.divergence(student, teacher, kind, **options)

        compiled_f, _ = compiled(f)
        actual = loss_and_gradient(student, teacher, kind, f=compiled_f, **options)
        assert same(actual, loss_and_gradient(student, teacher, kind, **options))

    @each_default
    def test_every_kind_by_name(self, kind):
        student, teacher = far_pair(3, 40)
        compiled_f, _ = compiled(lambda s, t: kd.divergence(s, t, kind.name))
        assert torch.equal(compiled_f(student, teacher), kd.divergence(student, teacher, kind))

    def test_every_option(self):
        student, teacher = far_pair(4, 40)
        teacher = torch.nn.functional.pad(teacher, (0, 3))

        def f(student, teacher, labels, normalizer):
            loss, stats = kd.divergence(
                student, teacher, "jsd", beta=0.2, temperature=(2.0, 1.5), scale_t2=True, labels=labels, vocab="common",
                normalizer=normalizer, return_stats=True,
            )  # fmt: skip
            return loss, stats.n_valid, stats.student_entropy, stats.teacher_entropy

        arguments = student, teacher, torch.tensor([1, -100, 2, 3]), torch.tensor(7.0)
        compiled_f, _ = compiled(f)
        assert same(compiled_f(*arguments), f(*arguments))

    @pytest.mark.parametrize("dynamic", [True, None])
    @pytest.mark.parametrize("reduction", ["mean", "none"])
    def test_no_compilation_per_number_of_rows(self, dynamic, reduction):
        """One graph, or with automatic dynamism a second one, whatever comes next."""

        def f(student, teacher, mask):
            return kd.divergence(student, teacher, "jsd", mask=mask, reduction=reduction)

        def step(f, n):
            student, teacher = far_pair(n, 40)
            return loss_and_gradient(student, teacher, torch.arange(n) % 3, f=f)

        compiled_f, counter = compiled(f, dynamic=dynamic)
        for n in (4, 6):
            step(compiled_f, n)
        known = counter.frame_count
        with torch.compiler.set_stance("fail_on_recompile"):
            for n in (9, 13, 64):
                assert same(step(compiled_f, n), step(f, n))
        assert counter.frame_count == known

    def test_no_compilation_per_normalizer(self):
        """As a tensor. (A number is a constant of the graph.)"""
        student, teacher = far_pair(4, 40)
        compiled_f, _ = compiled(lambda s, t, n: kd.divergence(s, t, normalizer=n))
        compiled_f(student, teacher, torch.tensor(3.0))
        with torch.compiler.set_stance("fail_on_recompile"):
            for n in (5.0, 17.0):
                normalizer = torch.tensor(n)
                expected = kd.divergence(student, teacher, normalizer=normalizer)
                assert torch.equal(compiled_f(student, teacher, normalizer), expected)

    def test_inside_a_compiled_step(self):
        """A linear head before it, Inductor's own kernels around it."""
        head, hidden, teacher = torch.nn.Linear(8, 30), torch.randn(5, 8), torch.randn(5, 30)

        def step(hidden, teacher):
            return kd.divergence(head(hidden), teacher, temperature=2.0) * 3

        expected = torch.autograd.grad(step(hidden, teacher), head.weight)
        loss = torch.compile(step, fullgraph=True)(hidden, teacher)
        actual = torch.autograd.grad(loss, head.weight)
        torch.testing.assert_close(actual, expected)

    def test_errors_are_the_eager_ones(self):
        """The checks run while the graph is traced."""
        compiled_f, _ = compiled(lambda s, t: kd.divergence(s, t, temperature=0.0))
        with pytest.raises(Exception, match="temperature must be between"):
            compiled_f(*far_pair(2, 5))


class TestExport:
    @pytest.mark.parametrize("strict", [True, False])
    def test_one_op_in_the_graph(self, strict):
        class Loss(torch.nn.Module):
            def forward(self, student, teacher, mask):
                return kd.divergence(student, teacher, "reverse_kl", mask=mask)

        student, teacher = far_pair(4, 30)
        mask = torch.tensor([1.0, 0.0, 1.0, 1.0])
        rows = torch.export.Dim("rows", min=2)
        program = torch.export.export(
            Loss(), (student, teacher, mask), dynamic_shapes=({0: rows}, {0: rows}, {0: rows}), strict=strict
        )  # fmt: skip
        calls = [node.target for node in program.graph.nodes if "kd_kernels" in str(node.target)]
        assert calls == [ops.divergence]
        longer = [torch.cat([x, x]) for x in (student, teacher, mask)]
        assert torch.equal(program.module()(*longer), kd.divergence(*longer[:2], "reverse_kl", mask=longer[2]))


class TestAutograd:
    @each_default
    def test_gradients_accumulate(self, kind):
        """Over micro-batches, with the number of rows of all of them as the normaliser."""
        student, teacher = far_pair(6, 30)
        whole = student.clone().requires_grad_()
        kd.divergence(whole, teacher, kind, normalizer=8.0).backward()
        parts = student.clone().requires_grad_()
        for rows in (slice(0, 1), slice(1, 4), slice(4, 6)):
            kd.divergence(parts[rows], teacher[rows], kind, normalizer=8.0).backward()
        assert torch.equal(parts.grad, whole.grad)

    @pytest.mark.parametrize("reduction", ["mean", "none"])
    def test_accumulation_into_one_tensor(self, reduction):
        """Twice the same loss is twice the gradient, in one backward pass or in two."""
        student, teacher = far_pair(4, 30)
        _, once = loss_and_gradient(student, teacher, "jsd", reduction=reduction)
        leaf = student.clone().requires_grad_()
        for _ in range(2):
            kd.divergence(leaf, teacher, "jsd", reduction=reduction).sum().backward()
        assert torch.equal(leaf.grad, 2 * once)
        leaf.grad = None
        losses = [kd.divergence(leaf, teacher, "jsd", reduction=reduction).sum() for _ in range(2)]
        (losses[0] + losses[1]).backward()
        assert torch.equal(leaf.grad, 2 * once)

    @pytest.mark.parametrize("backend", ["cpu", "triton", "reference"])
    @pytest.mark.parametrize("reduction", ["mean", "none"])
    def test_retain_graph(self, backend, reduction):
        """The saved gradient becomes the result only in the last backward pass."""
        student, teacher = on_device(backend, *far_pair(4, 30))
        student.requires_grad_()
        loss = kd.divergence(student, teacher, reduction=reduction, backend=backend).sum() * 3
        passes = [torch.autograd.grad(loss, student, retain_graph=keep)[0].clone() for keep in (True, True, False)]
        assert torch.equal(passes[0], passes[1])
        assert torch.equal(passes[0], passes[2])
        with pytest.raises(RuntimeError, match="backward through the graph a second time"):
            torch.autograd.grad(loss, student)

    def test_a_result_of_backward_is_the_callers_own(self):
        """Changing it does not change the next."""
        student, teacher = far_pair(4, 30)
        student.requires_grad_()
        loss = kd.divergence(student, teacher)
        (first,) = torch.autograd.grad(loss, student, retain_graph=True)
        expected = first.clone()
        first.zero_()
        assert torch.equal(torch.autograd.grad(loss, student)[0], expected)

    @pytest.mark.parametrize("backend", ["cpu", "triton"])
    @pytest.mark.parametrize("reduction", ["mean", "none"])
    def test_second_derivatives_are_refused(self, backend, reduction):
        """create_graph=True gives the first ones; the error comes when they are differentiated."""
        student, teacher = on_device(backend, *far_pair(4, 30))
        _, expected = loss_and_gradient(student, teacher, reduction=reduction, backend=backend)
        student.requires_grad_()
        loss = kd.divergence(student, teacher, reduction=reduction, backend=backend).sum()
        (gradient,) = torch.autograd.grad(loss, student, create_graph=True)
        assert torch.equal(gradient.detach(), expected)
        with pytest.raises(RuntimeError, match="first derivatives only; use backend='reference' for second ones"):
            gradient.square().sum().backward()

    @pytest.mark.parametrize("kind", [k for k in DEFAULTS if not isinstance(k, kd.ToDi | kd.AKL | kd.TVD)], ids=name)
    def test_second_derivatives_by_the_reference(self, kind):
        student, teacher = far_pair(2, 5, torch.float64, scale=1.0)

        def loss(z):
            return kd.divergence(z, teacher, kind, reduction="none", temperature=1.5, backend="reference")

        assert torch.autograd.gradcheck(loss, student.requires_grad_())
        assert torch.autograd.gradgradcheck(loss, student)

    @pytest.mark.parametrize("reduction", ["mean", "none"])
    def test_undefined_upstream_gradient(self, reduction):
        """What follows the loss gives it no gradient: neither does the loss."""

        class Nothing(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x):
                return x.clone()

            @staticmethod
            def backward(ctx, _):
                return None

        student, teacher = far_pair(4, 30)
        student.requires_grad_()
        Nothing.apply(kd.divergence(student, teacher, reduction=reduction)).sum().backward()
        assert student.grad is None or (student.grad == 0).all()

    def test_first_derivatives_of_compiled_kernels(self):
        student, teacher = far_pair(2, 5, torch.float64, scale=1.0)
        for kind in (kd.ForwardKL(), kd.JSD(), kd.SkewReverseKL()):
            for reduction in ("mean", "none"):
                assert torch.autograd.gradcheck(
                    lambda z, k=kind, r=reduction: kd.divergence(z, teacher, k, reduction=r, backend="cpu"),
                    student.requires_grad_(),
                )

    @pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
    @pytest.mark.parametrize("backend", ["cpu", "triton", "reference"])
    def test_without_a_graph(self, mode, backend):
        student, teacher = on_device(backend, *far_pair(4, 30))
        expected = kd.divergence(student, teacher, "jsd", backend=backend)
        with mode():
            loss, stats = kd.divergence(student.requires_grad_(), teacher, "jsd", return_stats=True, backend=backend)
        assert torch.equal(loss, expected)
        assert not loss.requires_grad
        assert stats.n_valid == 4

    def test_inference_tensors_as_teacher(self):
        """A teacher run in inference mode, a student that learns: a reduced loss keeps nothing of the teacher."""
        student, teacher = far_pair(4, 30)
        expected = loss_and_gradient(student, teacher)
        with torch.inference_mode():
            teacher = teacher.clone()
        assert same(loss_and_gradient(student, teacher), expected)

    @pytest.mark.parametrize("reduction", ["mean", "none"])
    def test_checkpointing(self, reduction):
        student, teacher = far_pair(4, 30)

        def f(student, teacher):
            return kd.divergence(student, teacher, reduction=reduction)

        def checkpointed(student, teacher):
            return torch.utils.checkpoint.checkpoint(f, student, teacher, use_reentrant=False)

        assert same(loss_and_gradient(student, teacher, f=checkpointed), loss_and_gradient(student, teacher, f=f))


class TestAutocast:
    def test_leaves_the_loss_alone(self):
        """The dtype of the logits decides, inside and outside."""
        for dtype in (torch.float32, torch.bfloat16):
            student, teacher = far_pair(4, 30, dtype)
            expected = loss_and_gradient(student, teacher, "jsd")
            with torch.autocast("cpu", dtype=torch.bfloat16):
                actual = loss_and_gradient(student, teacher, "jsd")
            assert same(actual, expected)
            assert actual[0].dtype == torch.float32

    def test_of_a_model(self):
        """bfloat16 logits from a float32 head: float32 loss, gradient back into the head."""
        head, hidden, teacher = torch.nn.Linear(8, 30), torch.randn(4, 8), torch.randn(4, 30)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = head(hidden)
            loss = kd.divergence(logits, teacher)
        assert logits.dtype == torch.bfloat16
        assert loss.dtype == torch.float32
        loss.backward()
        assert head.weight.grad.dtype == torch.float32
        assert torch.equal(loss.detach(), kd.divergence(logits.detach(), teacher))


@contextlib.contextmanager
def threads_of_torch(n):
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class TestThreads:
    @each_default
    def test_same_bits_with_any_number_of_threads(self, kind):
        """Rows enough that the core divides them."""
        student, teacher = far_pair(37, 1500)
        results = []
        for n in (1, 2, 3, 8):
            with threads_of_torch(n):
                results.append(loss_and_gradient(student, teacher, kind))
        assert all(same(r, results[0]) for r in results[1:])

    def test_number_of_threads_is_torchs(self, monkeypatch):
        """The core is told, at every call."""
        from kd_kernels.backends.cpu import rows

        told = []

        class Core:
            def __getattr__(self, name):
                function = getattr(core, name)
                return lambda *args: told.append(args[-1]) or function(*args)

        core = rows._core
        monkeypatch.setattr(rows, "_core", Core())
        for n in (1, 3):
            with threads_of_torch(n):
                kd.divergence(*far_pair(3, 10))
        assert told == [1, 3]

    def test_several_callers_at_once(self):
        """The core holds no state of its own. Each thread has its own problem, and gets its own answer every time."""
        kinds = [kd.ForwardKL(), kd.AKL(), kd.JSD(), kd.ToDi()]
        problems = [far_pair(16, 700, seed=i) for i in range(len(kinds))]
        expected = [loss_and_gradient(*p, kind) for p, kind in zip(problems, kinds, strict=True)]
        start, wrong = threading.Barrier(len(kinds)), []

        def work(i):
            start.wait()
            for _ in range(20):
                if not same(loss_and_gradient(*problems[i], kinds[i]), expected[i]):
                    wrong.append(kinds[i])

        threads = [threading.Thread(target=work, args=(i,)) for i in range(len(kinds))]
        with threads_of_torch(2):
            for t in threads:
                t.start()
            for t in threads:
                t.join()
        assert not wrong


def test_compiling_does_not_warn():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        compiled(lambda s, t: kd.divergence(s, t))[0](*far_pair(2, 5))
    assert not [w for w in caught if "kd_kernels" in str(w.message) or "lru_cache" in str(w.message)]
