"""SinKD: its three forms against their definitions."""

import math

import by_hand
import pytest
import torch
from by_hand import BACKENDS, gradient
from hypothesis import given, settings
from hypothesis import strategies as st

import kd_kernels as kd
from kd_kernels import smoothed_tvd
from kd_kernels.testing.budget import assert_within_budget

each_backend = pytest.mark.parametrize("backend", BACKENDS)
OPS = torch.ops.kd_kernels

TEACHER = [[2, 0, -1], [0, 1, 0.5], [-1, 0, 2]]
STUDENT = [[1, 0.5, -1], [0, 0.2, 1.5], [0, 1, 0]]
GOLDEN = {
    "unrolled": [
        [-0.28829308, 0.19414763, 0.09414545],
        [0.14045907, 0.15047503, -0.29093409],
        [0.09231211, 0.12314053, -0.21545264],
    ],
    "detached": [
        [-0.23321105, 0.15872219, 0.07448886],
        [0.11072378, 0.1235766, -0.23430039],
        [0.06740528, 0.12314053, -0.19054581],
    ],
}


def pair(*shape, teacher=None, dtype=torch.float64):
    student = (2 * torch.randn(*shape, dtype=torch.float64)).to(dtype).requires_grad_()
    return student, (2 * torch.randn(*(teacher or shape), dtype=torch.float64)).to(dtype)


def between_rows(student, teacher, temperature=2.0, **options):
    """form="batch"."""
    cost = by_hand.pairwise_l1(by_hand.softmax(student / temperature), by_hand.softmax(teacher / temperature))
    return by_hand.transport(cost, **options)


def within_rows(student, teacher, temperature=2.0, eps=0.1, iterations=20):
    """form="sample", (N,), with the V x V kernel."""
    vocabulary = student.shape[-1]
    cost = 1 - torch.eye(vocabulary, dtype=student.dtype)
    q, p = by_hand.softmax(student / temperature), by_hand.softmax(teacher / temperature)
    return torch.stack([by_hand.transport(cost, a, b, eps, iterations) for a, b in zip(q, p, strict=True)])


class TestBatch:
    @each_backend
    @pytest.mark.parametrize("grad", GOLDEN)
    def test_golden(self, backend, grad):
        student = torch.tensor(STUDENT, dtype=torch.float64, requires_grad=True)
        teacher = torch.tensor(TEACHER, dtype=torch.float64)
        loss = kd.methods.sinkd(student, teacher, grad=grad, backend=backend)
        assert loss.item() == pytest.approx(0.72849429, abs=1e-8)
        expected = torch.tensor(GOLDEN[grad], dtype=torch.float64)
        torch.testing.assert_close(gradient(loss, student), expected, rtol=0, atol=1e-8)

    @each_backend
    @pytest.mark.parametrize("detached", [False, True])
    def test_formula(self, backend, detached):
        student, teacher = pair(2, 3, 11, teacher=(5, 11))
        options = {"temperature": 1.3, "eps": 0.2, "iterations": 7}
        loss = kd.methods.sinkd(
            student, teacher, grad="detached" if detached else "unrolled", backend=backend, **options
        )
        expected = between_rows(student.reshape(-1, 11), teacher, detached=detached, **options)
        torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
        torch.testing.assert_close(gradient(loss, student), gradient(expected, student), rtol=0, atol=1e-12)

    @each_backend
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
    def test_accuracy(self, backend, dtype):
        student, teacher = pair(9, 300, dtype=dtype)
        truth_leaf = student.detach().double().requires_grad_()
        truth = between_rows(truth_leaf, teacher.double())
        eager = between_rows(student.float(), teacher.float())
        loss = kd.methods.sinkd(student, teacher, backend=backend)
        assert loss.dtype == torch.float32
        assert_within_budget(loss.detach(), truth.detach(), eager.detach(), "value")
        theirs = gradient(eager, student)
        assert gradient(loss, student).dtype == dtype
        assert_within_budget(gradient(loss, student), gradient(truth, truth_leaf), theirs, "gradient")

    @each_backend
    def test_rows_that_do_not_count_are_not_there(self, backend):
        student, teacher = pair(2, 4, 7)
        mask = torch.tensor([[1, 0, 1, 1], [0, 0, 1, 0]])
        with torch.no_grad():
            student[mask == 0] = math.nan
            teacher[mask == 0] = math.nan
        loss = kd.methods.sinkd(student, teacher, mask=mask, backend=backend)
        expected = between_rows(student[mask != 0], teacher[mask != 0])
        torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
        torch.testing.assert_close(
            gradient(loss, student), gradient(expected, student).nan_to_num(), rtol=0, atol=1e-12
        )
        assert (gradient(loss, student)[mask == 0] == 0).all()

    @each_backend
    def test_a_mask_for_each_side(self, backend):
        student, teacher = pair(4, 6, teacher=(5, 6))
        rows, columns = torch.tensor([1, 1, 0, 1]).bool(), torch.tensor([0, 1, 1, 0, 1]).bool()
        loss = kd.methods.sinkd(student, teacher, mask=rows, teacher_mask=columns, backend=backend)
        expected = between_rows(student[rows], teacher[columns])
        torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)

    @each_backend
    def test_nothing_counts(self, backend):
        student, teacher = pair(3, 5)
        for form in ("batch", "sequence", "sample"):
            mask = torch.zeros(3, dtype=torch.bool)
            loss = kd.methods.sinkd(student, teacher, mask=mask, form=form, reduction="mean", backend=backend)
            assert loss.item() == 0
            assert (gradient(loss, student) == 0).all()

    @each_backend
    def test_reductions(self, backend):
        student, teacher = pair(2, 3, 5)
        mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
        whole, mean, none = (
            kd.methods.sinkd(student, teacher, mask=mask, reduction=r, backend=backend) for r in ("sum", "mean", "none")
        )
        assert whole.shape == mean.shape == none.shape == ()
        assert whole == none
        torch.testing.assert_close(mean, whole / 5)
        torch.testing.assert_close(kd.methods.sinkd(student, teacher, backend=backend, reduction="mean") * 6,
                                   kd.methods.sinkd(student, teacher, backend=backend))  # fmt: skip

    @each_backend
    def test_padded_vocabulary(self, backend):
        student, teacher = pair(4, 9, teacher=(4, 7))
        loss = kd.methods.sinkd(student, teacher, vocab="common", backend=backend)
        torch.testing.assert_close(loss, between_rows(student[:, :7], teacher), rtol=1e-12, atol=0)
        loss = kd.methods.sinkd(student, teacher, vocab="common", form="sample", backend=backend)
        torch.testing.assert_close(loss, within_rows(student[:, :7], teacher).sum(), rtol=1e-12, atol=0)

    @settings(max_examples=15)
    @given(rows=st.permutations(range(5)), columns=st.permutations(range(6)), seed=st.integers(0, 2**31 - 1))
    def test_rows_and_classes_have_no_order(self, rows, columns, seed):
        torch.manual_seed(seed)
        student, teacher = pair(5, 6)
        for form in ("batch", "sample"):
            options = {"form": form, "iterations": 5, "backend": "reference"}
            loss = kd.methods.sinkd(student, teacher, **options)
            same_rows = rows if form == "sample" else slice(None)
            same = kd.methods.sinkd(student[rows][:, columns], teacher[same_rows][:, columns], **options)
            torch.testing.assert_close(same, loss, rtol=1e-11, atol=0)
            torch.testing.assert_close(gradient(same, student), gradient(loss, student), rtol=0, atol=1e-11)


class TestSequence:
    @each_backend
    def test_one_problem_a_sequence(self, backend):
        """Tokens that count need not be adjacent, and the teacher may have more of them."""
        student, teacher = pair(3, 5, 8, teacher=(3, 6, 8))
        rows = torch.tensor([[1, 1, 0, 1, 0], [1, 1, 1, 1, 1], [0, 0, 1, 1, 0]]).bool()
        columns = torch.tensor([[1, 0, 1, 0, 1, 1], [1, 1, 1, 1, 1, 0], [0, 1, 1, 0, 0, 0]]).bool()
        with torch.no_grad():
            student[~rows] = math.nan
            teacher[~columns] = math.inf
        values = kd.methods.sinkd(
            student, teacher, mask=rows, teacher_mask=columns, form="sequence", reduction="none", backend=backend
        )
        expected = torch.stack([between_rows(student[b][rows[b]], teacher[b][columns[b]]) for b in range(3)])
        torch.testing.assert_close(values, expected, rtol=1e-12, atol=0)
        weights = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
        torch.testing.assert_close(
            gradient(values @ weights, student),
            gradient(expected @ weights, student).nan_to_num(),
            rtol=0,
            atol=1e-12,
        )

    @each_backend
    def test_reductions(self, backend):
        student, teacher = pair(2, 3, 5)
        mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
        none = kd.methods.sinkd(student, teacher, mask=mask, form="sequence", reduction="none", backend=backend)
        for reduction, expected in (("sum", none.sum()), ("mean", none.sum() / 5)):
            value = kd.methods.sinkd(student, teacher, mask=mask, form="sequence", reduction=reduction, backend=backend)
            torch.testing.assert_close(value, expected)

    @each_backend
    def test_one_sequence_is_a_batch(self, backend):
        student, teacher = pair(1, 4, 6)
        torch.testing.assert_close(
            kd.methods.sinkd(student, teacher, form="sequence", backend=backend),
            kd.methods.sinkd(student, teacher, form="batch", backend=backend),
        )


class TestSample:
    @pytest.mark.parametrize("iterations", [1, 2, 20])
    @pytest.mark.parametrize("eps", [0.02, 0.1, 1.0, 30.0])
    def test_formula(self, eps, iterations):
        student, teacher = pair(4, 9)
        options = {"eps": eps, "iterations": iterations, "temperature": 1.5}
        values = kd.methods.sinkd(student, teacher, form="sample", reduction="none", **options)
        expected = within_rows(student, teacher, **options)
        torch.testing.assert_close(values, expected, rtol=1e-11, atol=0)
        weights = torch.randn(4, dtype=torch.float64)
        torch.testing.assert_close(
            gradient(values @ weights, student), gradient(expected @ weights, student), rtol=1e-9, atol=1e-11
        )

    def test_it_is_sinkhorn_of_a_constant_cost(self):
        """The same from the public function, the marginals being what has a gradient."""
        student, teacher = pair(3, 7)
        cost = (1 - torch.eye(7, dtype=torch.float64)).expand(3, 7, 7)
        values = kd.sinkhorn(
            cost, (student / 2).softmax(-1), (teacher / 2).softmax(-1), iterations=5, backend="reference"
        ).value
        loss = kd.methods.sinkd(student, teacher, form="sample", iterations=5)
        torch.testing.assert_close(loss, values.sum(), rtol=1e-11, atol=0)
        torch.testing.assert_close(gradient(loss, student), gradient(values.sum(), student), rtol=0, atol=1e-11)

    def test_little_entropy_gives_total_variation(self):
        student, teacher = pair(6, 20)
        values = kd.methods.sinkd(
            student, teacher, form="sample", eps=0.02, iterations=1000, temperature=1.0, reduction="none"
        )
        exact = kd.divergence(student, teacher, "tvd", reduction="none", backend="reference")
        torch.testing.assert_close(values, exact, rtol=1e-9, atol=0)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
    @pytest.mark.parametrize("eps", [0.005, 0.03, 0.1])
    def test_accuracy(self, dtype, eps):
        """Of peaked rows, among them equal ones; the smallest eps leave the range of float32."""
        student, teacher = pair(5, 200, dtype=dtype)
        with torch.no_grad():
            student[1] = 6 * teacher[1]
            student[2] = teacher[2]
        leaf = student.detach().double().requires_grad_()
        truth = within_rows(leaf, teacher.double(), eps=eps)
        eager_dtype = torch.float32 if eps >= 0.05 else torch.float64
        eager = within_rows(student.to(eager_dtype), teacher.to(eager_dtype), eps=eps)
        values = kd.methods.sinkd(student, teacher, form="sample", eps=eps, reduction="none")
        assert values.dtype == torch.float32
        assert_within_budget(values.detach(), truth.detach(), eager.detach().float(), "values")
        ours = gradient(values.sum(), student)
        assert ours.dtype == dtype
        assert_within_budget(ours, gradient(truth.sum(), leaf), gradient(eager.sum(), student), "gradient")

    def test_entries_without_mass(self):
        student, teacher = pair(4, 8)
        with torch.no_grad():
            student[0, 3], teacher[0, 5] = -math.inf, -math.inf
            student[1, 2] = teacher[1, 2] = -math.inf
            student[2, 1:] = -math.inf
        values = kd.methods.sinkd(student, teacher, form="sample", reduction="none")
        leaf = student.detach().clamp(min=-2000).requires_grad_()
        expected = within_rows(leaf, teacher.clamp(min=-2000))
        torch.testing.assert_close(values, expected, rtol=1e-11, atol=0)
        torch.testing.assert_close(gradient(values.sum(), student), gradient(expected.sum(), leaf), rtol=0, atol=1e-11)

    def test_rows_that_do_not_count_are_not_read(self):
        student, teacher = pair(2, 3, 7)
        mask = torch.tensor([[1, 0, 1], [0, 1, 0]]).bool()
        expected = kd.methods.sinkd(student[mask], teacher[mask], form="sample", reduction="mean")
        by_row = gradient(expected, student)
        with torch.no_grad():
            student[~mask] = math.nan
            teacher[~mask] = math.nan
        loss = kd.methods.sinkd(student, teacher, mask=mask, form="sample", reduction="mean")
        torch.testing.assert_close(loss, expected)
        torch.testing.assert_close(gradient(loss, student), by_row)

    def test_few_rows_at_a_time(self, monkeypatch):
        student, teacher = pair(5, 7)

        def value_and_gradient():
            values = kd.methods.sinkd(student, teacher, form="sample", reduction="none")
            return values.detach(), gradient(values.sum(), student)

        whole = value_and_gradient()
        monkeypatch.setattr(smoothed_tvd, "_ELEMENTS", 2 * 2 * 20 * 7)
        torch.testing.assert_close(value_and_gradient(), whole, rtol=0, atol=0)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
    @pytest.mark.parametrize("with_gradient", [False, True])
    def test_op(self, dtype, with_gradient):
        student, teacher = (x.detach() for x in pair(3, 5, dtype=dtype))
        factor = torch.tensor([1.0, 0.0, 2.0], dtype=torch.float64 if dtype == torch.float64 else torch.float32)
        arguments = (student, teacher, factor, [0.5, 1.0], 0.1, 3, with_gradient)
        torch.library.opcheck(OPS.smoothed_tvd.default, arguments)


@pytest.mark.parametrize("form", ["batch", "sequence", "sample"])
def test_compiled(form):
    torch.compiler.reset()
    student, teacher = pair(2, 3, 12, dtype=torch.float32)
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])

    def loss(student):
        return kd.methods.sinkd(student, teacher, mask=mask, form=form, iterations=3, backend="cpu")

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(student), loss(student))
    torch.testing.assert_close(gradient(compiled(student), student), gradient(loss(student), student))


@each_backend
def test_the_teacher_is_a_constant(backend):
    student, teacher = pair(4, 6)
    teacher.requires_grad_()
    for form in ("batch", "sample"):
        kd.methods.sinkd(student, teacher, form=form, backend=backend).backward()
    assert teacher.grad is None


@pytest.mark.parametrize(
    ("message", "error", "options"),
    [
        ("form must be one of", ValueError, {"form": "token"}),
        ("reduction must be one of", ValueError, {"reduction": "batchmean"}),
        ("grad must be 'unrolled' for form='sample'", ValueError, {"form": "sample", "grad": "detached"}),
        ("eps must be between 0.005", ValueError, {"form": "sample", "eps": 0.001}),
        ("iterations must be at least 1", ValueError, {"form": "sample", "iterations": 0}),
        ("teacher_mask must be None", ValueError, {"form": "sample", "teacher_mask": torch.ones(2, 3)}),
        ("mask must be bool or integer", TypeError, {"mask": torch.ones(2, 3)}),
        ("teacher_mask must have the shape", ValueError, {"teacher_mask": torch.ones(3, dtype=torch.int64)}),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)  # fmt: skip
def test_bad_arguments(message, error, options):
    student, teacher = pair(2, 3, 5)
    with pytest.raises(error, match=message):
        kd.methods.sinkd(student, teacher, backend="reference", **options)


def test_bad_shapes():
    student, teacher = pair(2, 3, 5, teacher=(2, 4, 5))
    mask = torch.ones(2, 3, dtype=torch.int64)
    with pytest.raises(ValueError, match="teacher_mask must be given"):
        kd.methods.sinkd(student, teacher, mask=mask)
    with pytest.raises(ValueError, match="must have the same batch"):
        kd.methods.sinkd(student, teacher, form="sample")
    with pytest.raises(ValueError, match=r"student_logits must have shape \[..., L, V\]"):
        kd.methods.sinkd(student[0, 0], teacher, form="sequence")
    with pytest.raises(ValueError, match="vocabularies of 5 and 4"):
        kd.methods.sinkd(student, teacher[..., :4])
    with pytest.raises(TypeError, match="student_logits must be a tensor"):
        kd.methods.sinkd([[1.0]], teacher)
