"""The same numbers as other libraries, where they are installed."""

import pytest
import torch

import kd_kernels as kd
from kd_kernels.testing.budget import assert_within_budget
from kd_kernels.testing.inputs import far_pair
from kd_kernels.testing.truth import Result, evaluate, truth

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BETAS = [0.0, 0.1, 0.5, 0.9, 1.0]  # 0: forward KL, 1: reverse KL


def one_by_one(loss, student, teacher, *rest) -> Result:
    """Losses of rows, and the gradient of their sum, by a loss that reduces."""
    leaf = student.clone().requires_grad_()
    losses = torch.stack([loss(leaf[i], teacher[i], *rest) for i in range(len(leaf))])
    losses.sum().backward()
    return Result(losses.detach(), leaf.grad)


def kinds(beta):
    """Every way to ask for it here."""
    return [kd.JSD(beta)] + [kd.ForwardKL()] * (beta == 0) + [kd.ReverseKL()] * (beta == 1)


def check(student, teacher, kind, theirs: Result, **options):
    """Ours is within the budget that theirs gives: at most twice as far from the truth, plus rounding."""
    expected = truth(student, teacher, kind, **options)
    ours = evaluate(student, teacher, kind, backend="cpu", **options)
    assert_within_budget(ours.losses, expected.losses, theirs.losses, "losses")
    assert_within_budget(ours.gradient, expected.gradient, theirs.gradient, "gradient")
    # and theirs means the same: no farther from the truth than float32 numbers differ
    torch.testing.assert_close(theirs.losses, expected.losses.float())
    torch.testing.assert_close(theirs.gradient, expected.gradient.float())


@pytest.fixture(scope="module")
def jsd():
    """TRL's loss of GKD."""
    pytest.importorskip("trl")
    return pytest.importorskip("trl.experimental.gkd.gkd_trainer").GKDTrainer.generalized_jsd_loss


@pytest.fixture(scope="module")
def liger():
    pytest.importorskip("liger_kernel")
    return pytest.importorskip("liger_kernel.transformers")


@pytest.mark.filterwarnings("ignore::UserWarning")
class TestTRL:
    @pytest.mark.parametrize("beta", BETAS)
    @pytest.mark.parametrize("temperature", [1.0, 2.0])
    def test_rows(self, jsd, beta, temperature):
        student, teacher = far_pair(16, 200)

        def theirs(s, t):
            return jsd(s[None, None], t[None, None], beta=beta, temperature=temperature)

        reference = one_by_one(theirs, student, teacher)
        for kind in kinds(beta):
            check(student, teacher, kind, reference, temperature=temperature)

    @pytest.mark.parametrize("beta", BETAS)
    @pytest.mark.parametrize("num_items", [None, 7])
    def test_labels_and_normalizer(self, jsd, beta, num_items):
        """Mean over the rows that count, or their sum over the number of items of the whole batch."""
        student, teacher = (x.reshape(2, 5, 60) for x in far_pair(10, 60))
        labels = torch.tensor([[-100, 3, 4, 5, -100], [1, -100, -100, 2, 3]])
        ours, theirs = student.clone().requires_grad_(), student.clone().requires_grad_()
        loss = kd.divergence(ours, teacher, "jsd", beta=beta, labels=labels, normalizer=num_items)
        loss.backward()
        expected = jsd(theirs, teacher, labels=labels, beta=beta, num_items_in_batch=num_items)
        expected.backward()
        torch.testing.assert_close(loss, expected)
        torch.testing.assert_close(ours.grad, theirs.grad)


class TestLiger:
    """Its kernels are Triton's; without a GPU they run in the interpreter. Liger takes log-probabilities, and the
    gradient here goes on through their softmax."""

    @pytest.mark.parametrize("beta", BETAS)
    def test_jsd(self, liger, beta):
        self.check(kd.JSD(beta), lambda s, t: liger.LigerJSD(beta=beta)(s.log_softmax(-1), t.log_softmax(-1)))

    @pytest.mark.skipif(DEVICE == "cpu", reason="its kernel does not run in Triton's interpreter")
    def test_tvd(self, liger):
        self.check(kd.TVD(), lambda s, t: liger.LigerTVDLoss()(s.softmax(-1), t.softmax(-1)))

    @staticmethod
    def check(kind, loss):
        student, teacher = (x.to(DEVICE) for x in far_pair(8, 200))
        ours, theirs = student.clone().requires_grad_(), student.clone().requires_grad_()
        actual, expected = kd.divergence(ours, teacher, kind), loss(theirs, teacher)
        actual.backward()
        expected.backward()
        torch.testing.assert_close(actual, expected.to(actual.dtype))
        torch.testing.assert_close(ours.grad, theirs.grad)
