"""What `divergence` promises: which rows and columns count, how rows become one number, what is returned, what is left
alone."""

import math

import pytest
import torch
from support import COMPILED, DEFAULTS, each_backend, each_default, name, on_device

import kd_kernels as kd
from kd_kernels.backends import select
from kd_kernels.testing.budget import assert_within_budget
from kd_kernels.testing.inputs import far_pair, near_pair
from kd_kernels.testing.truth import eager, evaluate, truth

BACKENDS = [*COMPILED, "reference"]
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]

pytestmark = pytest.mark.usefixtures("nan_in_fresh_memory")
each_contract_backend = pytest.mark.parametrize("backend", BACKENDS)
# In the interpreter every kind takes the same way around its formula; two of them stand for all.
each_kind_and_backend = pytest.mark.parametrize(
    ("kind", "backend"),
    [pytest.param(kind, backend, id=f"{name(kind)}-{backend}") for backend in BACKENDS for kind in DEFAULTS
     if backend != "triton" or isinstance(kind, kd.ReverseKL | kd.JSD)],
)  # fmt: skip


def pair(backend="cpu", rows=6, vocab=40, dtype=torch.float32):
    return on_device(backend, *far_pair(rows, vocab, dtype))


def loss_and_gradient(student, teacher, *args, **options):
    leaf = student.detach().clone().requires_grad_()
    loss = kd.divergence(leaf, teacher, *args, **options)
    loss.sum().backward()
    return loss.detach(), leaf.grad


def close(actual, expected, terms=1):
    """Equal but for the rounding of a sum of this many terms."""
    eps = torch.finfo(actual.dtype).eps
    torch.testing.assert_close(actual, expected.to(actual.dtype), rtol=terms * eps, atol=0)


class TestReduction:
    @each_contract_backend
    @pytest.mark.parametrize("masked", [False, True])
    def test_mean_and_sum_of_the_rows(self, backend, masked):
        student, teacher = pair(backend)
        weight = on_device(backend, torch.tensor([1.0, 0.0, 0.5, 2.0, 0.0, 0.25])) if masked else None
        rows = kd.divergence(student, teacher, mask=weight, reduction="none", backend=backend)
        total = kd.divergence(student, teacher, mask=weight, reduction="sum", backend=backend)
        mean = kd.divergence(student, teacher, mask=weight, backend=backend)
        close(total, rows.double().sum(), 6)
        close(mean, rows.double().sum() / (4 if masked else 6), 6)

    @each_contract_backend
    @pytest.mark.parametrize("as_tensor", [None, torch.float32, torch.int64, torch.float64])
    def test_normalizer_takes_the_place_of_the_count(self, backend, as_tensor):
        student, teacher = pair(backend)
        mask = on_device(backend, torch.tensor([1, 1, 0, 1, 0, 1], dtype=torch.bool))
        normalizer = 16.0 if as_tensor is None else on_device(backend, torch.tensor(16, dtype=as_tensor))
        total, gradient = loss_and_gradient(student, teacher, mask=mask, reduction="sum", backend=backend)
        actual = loss_and_gradient(student, teacher, mask=mask, normalizer=normalizer, backend=backend)
        assert torch.equal(actual[0], total / 16)
        assert torch.equal(actual[1], gradient / 16)

    def test_normalizer_of_one_element(self):
        student, teacher = pair()
        expected = kd.divergence(student, teacher, normalizer=3.0)
        close(kd.divergence(student, teacher, normalizer=torch.tensor([3])), expected)

    def test_normalizer_has_no_part_in_the_graph(self):
        student, teacher = pair()
        normalizer = torch.tensor(4.0, requires_grad=True)
        kd.divergence(student.requires_grad_(), teacher, normalizer=normalizer).backward()
        assert normalizer.grad is None

    @each_kind_and_backend
    def test_upstream_gradients_of_rows(self, kind, backend):
        """Per-row losses multiply each row's gradient; a zero leaves exactly nothing."""
        student, teacher = pair(backend, rows=3)
        upstream = on_device(backend, torch.tensor([0.0, -2.0, 0.5]))
        whole = evaluate(student, teacher, kind, backend=backend).gradient
        leaf = student.clone().requires_grad_()
        kd.divergence(leaf, teacher, kind, reduction="none", backend=backend).backward(upstream)
        assert (leaf.grad[0] == 0).all()
        assert_within_budget(
            leaf.grad.cpu(),
            (truth(student, teacher, kind).gradient * upstream[:, None]).cpu(),
            (eager(student, teacher, kind).gradient * upstream[:, None]).cpu(),
            "gradient",
        )
        if backend != "reference":  # powers of two: the very bits
            assert torch.equal(leaf.grad, whole * upstream[:, None])

    @each_backend
    @pytest.mark.parametrize("upstream", [0.0, 1.0, -0.25, 3.0])
    def test_upstream_gradient_of_a_scalar(self, backend, upstream):
        student, teacher = pair(backend)
        _, gradient = loss_and_gradient(student, teacher, "jsd", backend=backend)
        leaf = student.clone().requires_grad_()
        (kd.divergence(leaf, teacher, "jsd", backend=backend) * upstream).backward()
        close(leaf.grad, gradient * upstream)


class TestRowsThatCount:
    @each_contract_backend
    @pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.bfloat16])
    def test_mask_of_ones_and_zeros(self, backend, dtype):
        student, teacher = pair(backend)
        keep = on_device(backend, torch.tensor([1, 0, 1, 1, 0, 1]))
        kept = evaluate(student[keep.bool()], teacher[keep.bool()], "reverse_kl", backend=backend)
        masked = evaluate(student, teacher, "reverse_kl", mask=keep.to(dtype), backend=backend)
        assert torch.equal(masked.losses[keep.bool()], kept.losses)
        assert torch.equal(masked.gradient[keep.bool()], kept.gradient)
        assert (masked.losses[~keep.bool()] == 0).all()
        assert (masked.gradient[~keep.bool()] == 0).all()

    @each_contract_backend
    def test_mask_of_weights(self, backend):
        """Powers of two, a negative one among them, multiply without rounding."""
        student, teacher = pair(backend)
        weight = on_device(backend, torch.tensor([1.0, 0.0, 0.5, 4.0, -2.0, 0.25]))
        plain = evaluate(student, teacher, "tvd", backend=backend)
        weighted = evaluate(student, teacher, "tvd", mask=weight, backend=backend)
        assert torch.equal(weighted.losses, plain.losses * weight)
        assert torch.equal(weighted.gradient, plain.gradient * weight[:, None])

    @each_contract_backend
    def test_mask_has_no_part_in_the_graph(self, backend):
        student, teacher = pair(backend)
        weight = torch.ones_like(student[:, 0]).requires_grad_()
        kd.divergence(student.requires_grad_(), teacher, mask=weight, backend=backend).backward()
        assert weight.grad is None

    @each_contract_backend
    @pytest.mark.parametrize(("ignore_index", "labels"), [(-100, [3, -100, 0, -100, 1, 2]), (0, [3, 0, -100, 0, 1, 2])])
    @pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
    def test_labels(self, backend, ignore_index, labels, dtype):
        """Their values do not matter beyond that."""
        student, teacher = pair(backend)
        mask = on_device(backend, torch.tensor([1, 0, 1, 0, 1, 1]))
        options = {"labels": on_device(backend, torch.tensor(labels, dtype=dtype)), "ignore_index": ignore_index}
        actual = loss_and_gradient(student, teacher, **options, backend=backend)
        expected = loss_and_gradient(student, teacher, mask=mask, backend=backend)
        assert torch.equal(actual[0], expected[0])
        assert torch.equal(actual[1], expected[1])

    def test_labels_are_not_shifted(self):
        student, teacher = pair(rows=2)
        student[1] = math.nan
        assert kd.divergence(student, teacher, labels=torch.tensor([5, -100])).isfinite()
        assert kd.divergence(student, teacher, labels=torch.tensor([-100, 5])).isnan()

    def test_mask_and_labels_must_agree(self):
        student, teacher = pair(rows=4)
        both = kd.divergence(
            student, teacher, mask=torch.tensor([2.0, 2.0, 0.0, 0.0]), labels=torch.tensor([1, -100, 1, -100])
        )  # fmt: skip
        close(both, 2 * kd.divergence(student[:1], teacher[:1]))

    @each_contract_backend
    @pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
    def test_rubbish_in_masked_rows(self, backend, reduction):
        student, teacher = pair(backend)
        mask = on_device(backend, torch.tensor([1, 0, 1, 1, 0, 1]))
        options = {"mask": mask, "reduction": reduction, "backend": backend}
        expected = loss_and_gradient(student, teacher, "jsd", **options)
        student[1], teacher[1], student[4], teacher[4] = math.nan, -math.inf, math.inf, math.nan
        actual = loss_and_gradient(student, teacher, "jsd", **options)
        assert torch.equal(actual[0], expected[0])
        assert torch.equal(actual[1], expected[1])

    @each_contract_backend
    @pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
    @pytest.mark.parametrize("by", ["mask", "labels"])
    def test_no_row_counts(self, backend, reduction, by):
        """0, connected to the graph, with a gradient of zeros."""
        student, teacher = pair(backend)
        student[2] = math.nan
        zeros = torch.zeros_like(student[:, 0])
        rows = {"mask": zeros} if by == "mask" else {"labels": zeros.long() - 100}
        student.requires_grad_()
        loss, stats = kd.divergence(student, teacher, **rows, reduction=reduction, return_stats=True, backend=backend)
        assert (loss == 0).all()
        assert loss.grad_fn is not None
        loss.sum().backward()
        assert (student.grad == 0).all()
        assert stats.n_valid == 0
        assert (stats.student_entropy == 0).all()


class TestTemperature:
    @each_contract_backend
    def test_pair_is_students_and_teachers(self, backend):
        student, teacher = pair(backend)
        actual = evaluate(student, teacher, "reverse_kl", temperature=(2.0, 0.5), backend=backend)
        divided = evaluate(student / 2, teacher * 2, "reverse_kl", backend=backend)
        assert torch.equal(actual.losses, divided.losses)
        assert torch.equal(actual.gradient, divided.gradient / 2)

    @each_contract_backend
    @pytest.mark.parametrize(("temperature", "factor"), [(2.0, 4.0), ((4.0, 0.5), 2.0)])
    def test_scale_t2_is_not_on_unless_asked(self, backend, temperature, factor):
        student, teacher = pair(backend)
        plain = evaluate(student, teacher, temperature=temperature, kind="forward_kl", backend=backend)
        scaled = evaluate(student, teacher, temperature=temperature, kind="forward_kl", scale_t2=True, backend=backend)
        assert torch.equal(scaled.losses, factor * plain.losses)
        assert torch.equal(scaled.gradient, factor * plain.gradient)


class TestVocabulary:
    @each_kind_and_backend
    @pytest.mark.parametrize(("widths", "vocab", "columns"), [((40, 50), "common", 40), ((50, 40), "common", 40),
                                                              ((40, 50), 33, 33), ((40, 40), 1, 1)])  # fmt: skip
    def test_first_columns(self, backend, kind, widths, vocab, columns):
        """As if the others were not there, whatever they hold, with gradient zero."""
        student, teacher = on_device(backend, torch.randn(3, widths[0]), torch.randn(3, widths[1]))
        expected = evaluate(student[:, :columns], teacher[:, :columns], kind, backend=backend)
        student[:, columns:], teacher[:, columns:] = math.nan, math.inf
        actual = evaluate(student, teacher, kind, vocab=vocab, backend=backend)
        assert torch.equal(actual.losses, expected.losses)
        assert torch.equal(actual.gradient[:, :columns], expected.gradient)
        assert (actual.gradient[:, columns:] == 0).all()

    def test_common_of_equal_sizes_is_strict(self):
        student, teacher = pair()
        assert torch.equal(kd.divergence(student, teacher, vocab="common"), kd.divergence(student, teacher))


class TestStats:
    @each_contract_backend
    @pytest.mark.parametrize("temperature", [1.0, (2.0, 0.5)])
    def test_entropies_of_rows(self, backend, temperature):
        student, teacher = pair(backend)
        _, stats = kd.divergence(
            student, teacher, temperature=temperature, reduction="none", return_stats=True, backend=backend
        )
        temperatures = temperature if isinstance(temperature, tuple) else (temperature, temperature)
        for entropy, z, t in zip(
            (stats.student_entropy, stats.teacher_entropy), (student, teacher), temperatures, strict=True
        ):
            exact, plain = (torch.distributions.Categorical(logits=x / t).entropy() for x in (z.double(), z))
            assert_within_budget(entropy.cpu(), exact.cpu(), plain.cpu(), "entropy")
        assert stats.n_valid == 6

    @each_contract_backend
    @pytest.mark.parametrize(
        "options", [{}, {"reduction": "sum"}, {"normalizer": 8.0}, {"normalizer": torch.tensor(8)}]
    )
    def test_entropies_are_reduced_like_the_loss(self, backend, options):
        if backend != "cpu" and "normalizer" in options:
            options = {"normalizer": on_device(backend, torch.as_tensor(options["normalizer"]))}
        student, teacher = pair(backend)
        weight = on_device(backend, torch.tensor([1.0, 0.0, 0.5, 2.0, 0.0, 1.0]))
        common = {"mask": weight, "return_stats": True, "backend": backend}
        _, rows = kd.divergence(student, teacher, **{**common, "reduction": "none"})
        _, stats = kd.divergence(student, teacher, **common, **options)
        assert (rows.student_entropy[weight == 0] == 0).all()
        divisor = 1 if "reduction" in options else 8 if "normalizer" in options else 4
        close(stats.student_entropy, (rows.student_entropy * weight).double().sum() / divisor, 6)
        close(stats.teacher_entropy, (rows.teacher_entropy * weight).double().sum() / divisor, 6)
        assert stats.n_valid == 4
        assert stats.n_valid.dtype == torch.int64
        assert stats.n_valid.shape == ()

    @each_contract_backend
    def test_the_loss_does_not_change(self, backend):
        student, teacher = pair(backend)
        plain = loss_and_gradient(student, teacher, "jsd", backend=backend)
        leaf = student.clone().requires_grad_()
        loss, stats = kd.divergence(leaf, teacher, "jsd", return_stats=True, backend=backend)
        loss.backward()
        assert torch.equal(loss.detach(), plain[0])
        assert torch.equal(leaf.grad, plain[1])
        assert not stats.student_entropy.requires_grad

    @each_contract_backend
    def test_forbidden_entries_have_no_entropy(self, backend):
        student, teacher = pair(backend, vocab=20)
        student[:, 10:] = teacher[:, 5:] = -math.inf
        _, stats = kd.divergence(student, teacher, "tvd", reduction="none", return_stats=True, backend=backend)
        for entropy, z in ((stats.student_entropy, student[:, :10]), (stats.teacher_entropy, teacher[:, :5])):
            exact, plain = (torch.distributions.Categorical(logits=x).entropy().cpu() for x in (z.double(), z))
            assert_within_budget(entropy.cpu(), exact, plain, "entropy")


class TestKinds:
    @pytest.mark.parametrize(
        ("name", "params", "kind"),
        [("jsd", {"beta": 0.3}, kd.JSD(0.3)), ("js_teacher", {"beta": 0.8}, kd.JSTeacher(0.8)), ("tvd", {}, kd.TVD()),
         ("skew_forward_kl", {"alpha": 0.4}, kd.SkewForwardKL(alpha=0.4)), ("todi", {"beta": 2}, kd.ToDi(2.0))],
    )  # fmt: skip
    @each_contract_backend
    def test_names_and_objects(self, name, params, kind, backend):
        student, teacher = pair(backend)
        by_name = loss_and_gradient(student, teacher, name, **params, backend=backend)
        by_object = loss_and_gradient(student, teacher, kind, backend=backend)
        assert torch.equal(by_name[0], by_object[0])
        assert torch.equal(by_name[1], by_object[1])

    def test_forward_kl_is_the_default(self):
        student, teacher = pair()
        assert torch.equal(kd.divergence(student, teacher), kd.divergence(student, teacher, "forward_kl"))

    def test_objects_are_values(self):
        assert kd.JSD(0.5) == kd.JSD()
        assert len({kd.JSD(0.5), kd.JSD(), kd.JSD(0.1)}) == 2
        with pytest.raises(AttributeError):
            kd.JSD().beta = 0.3


class TestShapesAndDtypes:
    @each_contract_backend
    @pytest.mark.parametrize("lead", [(), (1,), (5,), (2, 1, 3)])
    def test_leading_shapes(self, backend, lead):
        student, teacher = on_device(backend, torch.randn(*lead, 30), torch.randn(*lead, 30))
        mask = on_device(backend, torch.randint(0, 2, lead))
        student.requires_grad_()
        loss, stats = kd.divergence(student, teacher, mask=mask, reduction="none", return_stats=True, backend=backend)
        assert loss.shape == stats.student_entropy.shape == stats.teacher_entropy.shape == lead
        loss.sum().backward()
        assert student.grad.shape == (*lead, 30)
        flat = kd.divergence(
            student.detach().reshape(-1, 30), teacher.reshape(-1, 30), mask=mask.reshape(-1), reduction="none",
            backend=backend,
        )  # fmt: skip
        assert torch.equal(loss.detach().reshape(-1), flat)
        assert kd.divergence(student, teacher, mask=mask, backend=backend).shape == ()

    @each_contract_backend
    @pytest.mark.parametrize("shape", [(0, 9), (3, 0, 9), (0, 1)])
    @pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
    def test_no_rows(self, backend, shape, reduction):
        student, teacher = on_device(backend, torch.randn(shape), torch.randn(shape))
        student.requires_grad_()
        mask = on_device(backend, torch.ones(shape[:-1]))
        loss, stats = kd.divergence(
            student, teacher, mask=mask, reduction=reduction, return_stats=True, backend=backend
        )
        assert loss.shape == (shape[:-1] if reduction == "none" else ())
        assert loss.grad_fn is not None
        assert (loss == 0).all()
        assert stats.n_valid == 0
        loss.sum().backward()
        assert student.grad.shape == shape

    @each_contract_backend
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("reduction", ["mean", "none"])
    def test_output_dtypes(self, backend, dtype, reduction):
        """The gradient has the student's, everything else float32, or float64 for float64."""
        if backend in ("triton", "cuda") and dtype == torch.float64:
            pytest.skip("not supported")
        student, teacher = pair(backend, dtype=dtype)
        student.requires_grad_()
        loss, stats = kd.divergence(student, teacher, reduction=reduction, return_stats=True, backend=backend)
        loss.sum().backward()
        real = torch.float64 if dtype == torch.float64 else torch.float32
        assert loss.dtype == stats.student_entropy.dtype == stats.teacher_entropy.dtype == real
        assert student.grad.dtype == dtype

    @each_contract_backend
    def test_memory_layouts(self, backend):
        """Expanded, transposed, strided, offset: the same bits, the tensors untouched."""
        base_s, base_t = pair(backend, rows=6, vocab=24)

        def transposed(x):
            return x.t().contiguous().t()

        def every_other(x):
            return torch.stack([x, torch.full_like(x, math.nan)], -1)[..., 0]

        def offset(x):
            return torch.cat([torch.full_like(x[:1], math.nan), x])[1:]

        def batched(x):  # [2, 3, V] with rows that no view makes [6, V]
            return x.reshape(3, 2, 24).transpose(0, 1).contiguous().transpose(0, 1)

        expected = loss_and_gradient(base_s, base_t, "jsd", reduction="none", backend=backend)
        for layout in (transposed, every_other, offset, batched):
            student, teacher = layout(base_s).requires_grad_(), layout(base_t)
            before = student.detach().clone(), teacher.clone()
            loss = kd.divergence(student, teacher, "jsd", reduction="none", backend=backend)
            loss.sum().backward()
            assert torch.equal(loss.detach().reshape(-1), expected[0]), layout.__name__
            assert torch.equal(student.grad.reshape(-1, 24), expected[1]), layout.__name__
            assert torch.equal(student.detach(), before[0]), layout.__name__
            assert torch.equal(teacher, before[1]), layout.__name__

    @each_contract_backend
    @pytest.mark.parametrize("reduction", ["mean", "none"])
    def test_expanded_tensors(self, backend, reduction):
        """One row for all of them; the gradient of an expanded student adds up over its copies."""
        student, teacher = pair(backend, rows=1)
        leaf = student.clone().requires_grad_()
        options = {"reduction": reduction, "backend": backend}
        loss = kd.divergence(leaf.expand(4, -1), teacher.expand(4, -1), **options)
        loss.sum().backward()
        single = loss_and_gradient(student, teacher, **options)
        assert torch.equal(loss.detach(), single[0] if reduction == "mean" else single[0].expand(4))
        assert torch.equal(leaf.grad, single[1] * (1 if reduction == "mean" else 4))

    @each_kind_and_backend
    def test_the_callers_tensors_are_not_changed(self, kind, backend):
        student, teacher = pair(backend)
        mask, labels = (on_device(backend, torch.tensor(x)) for x in ([1, 0, 1, 1, 1, 0], [1, 2, -100, 4, 5, 6]))
        normalizer = on_device(backend, torch.tensor(3.0))
        tensors = [student, teacher, mask, labels, normalizer]
        before = [x.clone() for x in tensors]
        versions = [x._version for x in tensors]
        leaf = student.requires_grad_()
        for options in ({"normalizer": normalizer}, {"reduction": "none"}):
            loss = kd.divergence(leaf, teacher, kind, mask=mask, labels=labels, **options, backend=backend)
            (3 * loss.sum()).backward()
        assert [x._version for x in tensors] == versions
        assert all(torch.equal(a, b) for a, b in zip(tensors, before, strict=True))

    @each_contract_backend
    def test_the_callers_upstream_gradient_is_not_changed(self, backend):
        student, teacher = pair(backend)
        for reduction, shape in (("mean", ()), ("none", (6,))):
            upstream = on_device(backend, torch.full(shape, 0.5))
            loss = kd.divergence(student.clone().requires_grad_(), teacher, reduction=reduction, backend=backend)
            loss.backward(upstream)
            assert (upstream == 0.5).all()


class TestGradients:
    @each_contract_backend
    def test_student_alone(self, backend):
        student, teacher = pair(backend)
        student.requires_grad_(), teacher.requires_grad_()
        kd.divergence(student, teacher, backend=backend).backward()
        assert teacher.grad is None
        assert student.grad is not None

    @each_default
    def test_teacher_where_asked(self, kind):
        """By the reference, which `auto` takes then. Compared with autograd by hand."""
        student, teacher = (x.requires_grad_() for x in pair(dtype=torch.float64))
        kd.divergence(student, teacher, kind, teacher_grad=True, temperature=2.0).backward()
        s, t = (x.detach().clone().requires_grad_() for x in (student, teacher))
        kind.rows((t / 2).log_softmax(-1), (s / 2).log_softmax(-1)).mean().backward()
        torch.testing.assert_close(teacher.grad, t.grad)
        torch.testing.assert_close(student.grad, s.grad)

    @each_kind_and_backend
    @pytest.mark.parametrize("reduction", ["mean", "none"])
    def test_values_do_not_depend_on_whether_a_gradient_is_wanted(self, kind, backend, reduction):
        student, teacher = on_device(backend, *near_pair(4, 70))
        options = {"reduction": reduction, "backend": backend}
        with_gradient = kd.divergence(student.clone().requires_grad_(), teacher, kind, **options).detach()
        assert torch.equal(kd.divergence(student, teacher, kind, **options), with_gradient)
        with torch.no_grad():
            assert torch.equal(kd.divergence(student.requires_grad_(), teacher, kind, **options), with_gradient)

    @each_contract_backend
    def test_no_graph_where_none_is_wanted(self, backend):
        student, teacher = pair(backend)
        assert not kd.divergence(student, teacher, backend=backend).requires_grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("low", [-50.0, -200.0, -5000.0])
@pytest.mark.parametrize("forbidding", ["student", "teacher"])
@each_default
def test_an_entry_one_side_forbids_and_the_other_all_but_excludes(kind, forbidding, low, dtype):
    """However far its probability underflows, losses are 0 or more, or infinite, never NaN."""
    low, none = torch.tensor([[0.0, low]], dtype=dtype), torch.tensor([[0.0, -math.inf]], dtype=dtype)
    student, teacher = (none, low) if forbidding == "student" else (low, none)
    for backend in ("cpu", "reference"):
        loss = kd.divergence(student, teacher, kind, backend=backend)
        assert loss >= (0 if backend == "cpu" else -torch.finfo(dtype).eps)
        leaf = student.clone().requires_grad_()
        kd.divergence(leaf, teacher, kind, backend=backend).backward()
        assert loss.isinf() or not leaf.grad.isnan().any()


class TestBackends:
    @pytest.fixture(autouse=True)
    def without_cuda_kernels(self, monkeypatch):
        monkeypatch.setattr(select, "_MISSING", {"cuda": "not built"})

    @pytest.mark.parametrize(
        ("device", "dtype", "backend"),
        [
            ("cpu", torch.float32, "cpu"), ("cpu", torch.float64, "cpu"), ("cpu", torch.bfloat16, "cpu"),
            ("cuda", torch.float32, "triton"), ("cuda", torch.bfloat16, "triton"), ("cuda", torch.float64, "reference"),
            ("xpu", torch.float16, "triton"), ("mps", torch.float32, "reference"), ("meta", torch.float32, "reference"),
        ],
    )  # fmt: skip
    def test_auto(self, device, dtype, backend):
        assert select.choose("auto", torch.device(device), (dtype, dtype)) == backend

    @pytest.mark.parametrize(
        ("backend", "device", "dtypes"),
        [
            ("cpu", "cuda", (torch.float32,) * 2), ("triton", "cuda", (torch.float64,) * 2),
            ("triton", "mps", (torch.float32,) * 2), ("cpu", "cpu", (torch.float32, torch.int8)),
        ],
    )  # fmt: skip
    def test_no_silent_fallback(self, backend, device, dtypes):
        with pytest.raises(ValueError, match=f"^backend '{backend}' does not support"):
            select.choose(backend, torch.device(device), dtypes)

    def test_auto_is_cpu_here(self, monkeypatch):
        asked = []
        implementation = select.implementation
        monkeypatch.setattr(select, "implementation", lambda backend: asked.append(backend) or implementation(backend))
        kd.divergence(*pair())
        assert asked == ["cpu"]

    @pytest.mark.parametrize("backend", ["cpu", "triton"])
    def test_the_named_backend_runs(self, backend, monkeypatch):
        asked = []
        implementation = select.implementation
        monkeypatch.setattr(select, "implementation", lambda name: asked.append(name) or implementation(name))
        kd.divergence(*pair(backend), backend=backend)
        assert asked == [backend]

    def test_meta_tensors(self):
        student = torch.empty(4, 9, device="meta", requires_grad=True)
        loss, stats = kd.divergence(student, torch.empty(4, 9, device="meta"), reduction="none", return_stats=True)
        loss.sum().backward()
        assert loss.shape == stats.student_entropy.shape == (4,)
        assert student.grad.shape == (4, 9)
