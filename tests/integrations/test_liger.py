"""Liger's losses: against their formulas, and against Liger where it is installed."""

import pytest
import torch
from same import assert_same, jsd, kl, leaf
from torch.nn import functional as F  # noqa: N812

from kd_kernels.integrations import liger as ours

LABELS = torch.tensor([3, -100, 5, 0, -100, 7, 7])
ROWS, VOCABULARY, WIDTH, TEACHER_WIDTH = len(LABELS), 23, 8, 12
each_beta = pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
each_labels = pytest.mark.parametrize("labels", [None, LABELS], ids=["all", "labels"])


def heads(dtype=torch.float64, teacher_vocabulary=VOCABULARY):
    """Hidden states and weights of a student, which are leaves, and of a teacher."""
    student = {
        "hidden": leaf(ROWS, WIDTH, dtype=dtype), "weight": leaf(VOCABULARY, WIDTH, scale=0.5, dtype=dtype)
    }  # fmt: skip
    teacher = (
        torch.randn(ROWS, TEACHER_WIDTH, dtype=dtype),
        torch.randn(teacher_vocabulary, TEACHER_WIDTH, dtype=dtype) / 2,
    )
    return student, teacher


def rows_that_count(rows, labels):
    return rows if labels is None else rows[labels != -100]


def peer(name: str, module: str = "liger_kernel.transformers"):
    """A loss of Liger's; those that are Triton's run in its interpreter where there is no GPU."""
    return getattr(pytest.importorskip(module, exc_type=ImportError), name)


class TestFusedLinearJSDLoss:
    @staticmethod
    def formula(student, teacher, biases, beta, temperature, hard, soft):
        z_s, z_t = student["hidden"] @ student["weight"].T, teacher[0] @ teacher[1].T
        if biases is not None:
            z_s, z_t = z_s + biases[0], z_t + biases[1]
        counted = LABELS != -100
        log_p, log_q = ((x[counted] / temperature).log_softmax(-1) for x in (z_t[:, :VOCABULARY], z_s))
        terms = jsd(log_p, log_q, beta).mean(), F.cross_entropy(z_s, LABELS)
        return soft * terms[0] + hard * terms[1], *(x.detach() for x in terms)

    @each_beta
    @pytest.mark.parametrize("temperature", [1.0, 2.0])
    @pytest.mark.parametrize(("hard", "soft"), [(0.5, 0.5), (0.0, 1.0), (0.3, 0.0)])
    @pytest.mark.parametrize("biased", [False, True], ids=["plain", "bias"])
    def test_formula(self, biased, hard, soft, temperature, beta):
        student, teacher = heads()
        biases = None
        if biased:
            student["bias"] = leaf(VOCABULARY)
            biases = student["bias"], torch.randn(VOCABULARY, dtype=torch.float64)
        loss = ours.LigerFusedLinearJSDLoss(hard, soft, beta=beta, temperature=temperature, return_soft_hard_loss=True)
        assert_same(
            lambda: loss(student["hidden"], student["weight"], *teacher, LABELS, *(biases or ())),
            lambda: self.formula(student, teacher, biases, beta, temperature, hard, soft),
            student,
        )  # fmt: skip

    def test_a_longer_vocabulary_is_padding(self):
        """It is left out; Liger gives its entries a student's logit of 0."""
        student, teacher = heads(teacher_vocabulary=VOCABULARY + 5)
        loss = ours.LigerFusedLinearJSDLoss(return_soft_hard_loss=True)
        assert_same(
            lambda: loss(student["hidden"], student["weight"], *teacher, LABELS),
            lambda: self.formula(student, teacher, None, 0.5, 1.0, 0.5, 0.5),
            student,
        )  # fmt: skip

    def test_a_shorter_vocabulary_is_refused(self):
        student, teacher = heads(teacher_vocabulary=VOCABULARY - 1)
        with pytest.raises(ValueError, match="vocabularies of 23 and 22"):
            ours.LigerFusedLinearJSDLoss()(student["hidden"], student["weight"], *teacher, LABELS)

    @each_beta
    @pytest.mark.parametrize(("hard", "soft"), [(0.5, 0.5), (0.0, 1.0)])
    def test_the_original(self, hard, soft, beta):
        theirs = peer("LigerFusedLinearJSDLoss", "liger_kernel.chunked_loss")
        student, teacher = heads(torch.float32)
        options = {"beta": beta, "temperature": 2.0, "compiled": False, "return_soft_hard_loss": True}
        losses = [cls(hard, soft, **options) for cls in (ours.LigerFusedLinearJSDLoss, theirs)]
        assert_same(
            *(lambda f=f: f(student["hidden"], student["weight"], *teacher, LABELS) for f in losses), student, rtol=2e-5
        )


class TestFusedLinearJSD:
    @each_beta
    @each_labels
    def test_formula(self, labels, beta):
        student, teacher = heads()
        loss = ours.LigerFusedLinearJSD(beta, temperature=1.7)

        def formula():
            z_s, z_t = student["hidden"] @ student["weight"].T, teacher[0] @ teacher[1].T
            log_p, log_q = ((x / 1.7).log_softmax(-1) for x in (z_t, z_s))
            return rows_that_count(jsd(log_p, log_q, beta), labels).mean()

        assert_same(lambda: loss(*student.values(), *teacher, labels), formula, student)

    def test_the_original(self):
        theirs = peer("LigerFusedLinearJSD")
        student, teacher = heads(torch.float32)
        losses = [cls(0.3, temperature=1.7) for cls in (ours.LigerFusedLinearJSD, theirs)]
        assert_same(*(lambda f=f: f(*student.values(), *teacher, LABELS) for f in losses), student, rtol=5e-5)


class TestFusedLinearKLDivLoss:
    @staticmethod
    def target(dtype=torch.float64):
        """With an entry of probability 0, and a row that adds up to less than 1."""
        target = torch.randn(ROWS, VOCABULARY, dtype=dtype).softmax(-1)
        target[0, 4] = 0
        target[2] /= 2
        return target

    @pytest.mark.parametrize("reduction", ["batchmean", "mean", "sum"])
    @each_labels
    def test_formula(self, labels, reduction):
        student, _ = heads()
        target = self.target()
        loss = ours.LigerFusedLinearKLDivLoss(reduction, temperature=1.7)

        def formula():
            log_q = (student["hidden"] @ student["weight"].T / 1.7).log_softmax(-1)
            rows = rows_that_count((torch.xlogy(target, target) - target * log_q).sum(-1), labels)
            return rows.sum() / {"batchmean": len(rows), "mean": len(rows) * VOCABULARY, "sum": 1}[reduction]

        assert_same(lambda: loss(*student.values(), target, labels), formula, student)

    @pytest.mark.parametrize("reduction", ["batchmean", "mean", "sum"])
    def test_the_original(self, reduction):
        theirs = peer("LigerFusedLinearKLDivLoss")
        student, _ = heads(torch.float32)
        target = self.target(torch.float32)
        losses = [cls(reduction, temperature=1.7) for cls in (ours.LigerFusedLinearKLDivLoss, theirs)]
        assert_same(*(lambda f=f: f(*student.values(), target, LABELS) for f in losses), student, rtol=5e-5)


class TestJSD:
    @each_beta
    @each_labels
    def test_formula(self, labels, beta):
        student, teacher = leaf(ROWS, VOCABULARY), torch.randn(ROWS, VOCABULARY, dtype=torch.float64).log_softmax(-1)
        loss = ours.LigerJSD(beta)
        assert_same(
            lambda: loss(student.log_softmax(-1), teacher, labels),
            lambda: rows_that_count(jsd(teacher, student.log_softmax(-1), beta), labels).mean(),
            {"student": student},
        )

    def test_the_original(self):
        theirs = peer("LigerJSD")
        student = leaf(ROWS, VOCABULARY, dtype=torch.float32)
        teacher = torch.randn(ROWS, VOCABULARY).log_softmax(-1)
        losses = ours.LigerJSD(0.3), theirs(0.3)
        assert_same(
            *(lambda f=f: f(student.log_softmax(-1), teacher, LABELS) for f in losses), {"student": student}, rtol=5e-5
        )


class TestKLDIVLoss:
    @pytest.mark.parametrize("reduction", ["batchmean", "mean", "sum", "none"])
    @pytest.mark.parametrize("log_target", [False, True])
    def test_formula(self, log_target, reduction):
        student, log_p = leaf(ROWS, VOCABULARY), torch.randn(ROWS, VOCABULARY, dtype=torch.float64).log_softmax(-1)
        loss = ours.LigerKLDIVLoss(reduction=reduction, log_target=log_target)

        def formula():
            entries = log_p.exp() * (log_p - student.log_softmax(-1))
            sums = {"batchmean": ROWS, "mean": ROWS * VOCABULARY, "sum": 1}
            return entries if reduction == "none" else kl(log_p, student.log_softmax(-1)).sum() / sums[reduction]

        teacher = log_p if log_target else log_p.exp()
        assert_same(lambda: loss(student.log_softmax(-1), teacher), formula, {"student": student})

    @pytest.mark.skipif(not torch.cuda.is_available(), reason="its kernel does not run in Triton's interpreter")
    @pytest.mark.parametrize("reduction", ["batchmean", "mean", "sum"])
    def test_the_original(self, reduction):
        theirs = peer("LigerKLDIVLoss")
        student = leaf(ROWS, VOCABULARY, dtype=torch.float32)
        teacher = torch.randn(ROWS, VOCABULARY).softmax(-1)
        losses = ours.LigerKLDIVLoss(reduction=reduction), theirs(reduction=reduction)
        assert_same(*(lambda f=f: f(student.log_softmax(-1), teacher) for f in losses), {"student": student}, rtol=5e-5)


class TestTVDLoss:
    @pytest.mark.parametrize("reduction", ["batchmean", "mean", "sum", "none"])
    @each_labels
    def test_formula(self, labels, reduction):
        student, q = leaf(ROWS, VOCABULARY), torch.randn(ROWS, VOCABULARY, dtype=torch.float64).softmax(-1)
        with torch.no_grad():
            student[0, 3] = -1000.0  # probability 0
        loss = ours.LigerTVDLoss(reduction)

        def formula():
            entries = 0.5 * (student.softmax(-1) - q).abs()
            if labels is not None:
                entries = entries * (labels != -100)[:, None]
            count = ROWS if labels is None else (labels != -100).sum()
            if reduction == "none":
                return entries
            return entries.sum() / {"batchmean": count, "mean": count * VOCABULARY, "sum": 1}[reduction]

        assert_same(lambda: loss(student.softmax(-1), q, labels), formula, {"student": student})


class TestRefused:
    @pytest.mark.parametrize("name", ["LigerFusedLinearJSDLoss", "LigerFusedLinearJSD", "LigerFusedLinearKLDivLoss"])
    def test_temperature(self, name):
        with pytest.raises(ValueError, match="temperature cannot be 0"):
            getattr(ours, name)(temperature=0.0)

    @pytest.mark.parametrize("name", ["LigerFusedLinearKLDivLoss", "LigerKLDIVLoss", "LigerTVDLoss"])
    def test_reduction(self, name):
        with pytest.raises(ValueError, match="reduction must be one of"):
            getattr(ours, name)(reduction="median")

    def test_entries_of_a_fused_loss(self):
        with pytest.raises(ValueError, match="reduction must be one of batchmean, mean, sum"):
            ours.LigerFusedLinearKLDivLoss(reduction="none")

    def test_labels_of_another_shape(self):
        student, teacher = heads()
        with pytest.raises(ValueError, match="labels must have the shape of the rows"):
            ours.LigerFusedLinearJSD()(*student.values(), *teacher, LABELS[:-1])


def test_no_row_counts():
    student, teacher = heads()
    none = torch.full_like(LABELS, -100)
    for loss in (ours.LigerFusedLinearJSDLoss(), ours.LigerFusedLinearJSD()):
        value = loss(*student.values(), *teacher, none)
        gradients = torch.autograd.grad(value, list(student.values()))
        assert value == 0
        assert not any(x.any() for x in gradients)
