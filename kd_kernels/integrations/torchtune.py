"""The distillation losses of torchtune, by its names and arguments: `torchtune.modules.loss`.

In a configuration:

    kd_loss:
      _component_: kd_kernels.integrations.torchtune.ForwardKLWithChunkedOutputLoss

Values are those of torchtune: its forward KL is a cross-entropy, KL(p, q) plus the teacher's entropy, with the gradient
of KL(p, q). A batch without tokens that count gives 0 with a gradient of 0, in every class.
"""

from dataclasses import dataclass

from torch import Tensor, nn

import kd_kernels as kd
from kd_kernels.divergences.base import Divergence, Kernel, kl


@dataclass(frozen=True)
class _MixedKL(Divergence):
    """ratio KL(p, q) + (1 - ratio) KL(q, p)."""

    ratio: float
    name = "mixed_kl"

    def rows(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        return self.ratio * kl(log_p, log_q) + (1 - self.ratio) * kl(log_q, log_p)

    def h(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        return self.ratio * kd.ForwardKL().h(log_p, log_q) + (1 - self.ratio) * kd.ReverseKL().h(log_p, log_q)

    @property
    def kernel(self) -> Kernel:
        return Kernel("kl", (self.ratio, 1 - self.ratio))


class _Loss(nn.Module):
    """ratio times the forward KL of torchtune plus 1 - ratio times the reverse KL."""

    def __init__(self, ratio: float, ignore_index: int):
        super().__init__()
        self.ignore_index = ignore_index
        self._ratio = ratio
        self._kind = {0.0: kd.ReverseKL(), 1.0: kd.ForwardKL()}.get(ratio) or _MixedKL(ratio)

    def _total(self, student: Tensor, teacher: Tensor, labels: Tensor, reduction: str) -> Tensor:
        options = {"labels": labels.reshape(-1), "ignore_index": self.ignore_index, "reduction": reduction}
        student, teacher = student.reshape(-1, student.shape[-1]), teacher.reshape(-1, teacher.shape[-1])
        if self._ratio == 0:
            return kd.divergence(student, teacher, self._kind, **options)
        loss, stats = kd.divergence(student, teacher, self._kind, return_stats=True, **options)
        return loss + self._ratio * stats.teacher_entropy


class _OfLogits(_Loss):
    def forward(self, student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, normalize: bool = True) -> Tensor:
        """Logits `[tokens, V]`, labels of as many tokens -> mean over those that count, or their sum."""
        return self._total(student_logits, teacher_logits, labels, "mean" if normalize else "sum")


class _OfChunks(_Loss):
    def __init__(self, num_output_chunks: int, ratio: float, ignore_index: int):
        super().__init__(ratio, ignore_index)
        self.num_output_chunks = num_output_chunks

    def forward(self, student_logits: list[Tensor], teacher_logits: list[Tensor], labels: Tensor) -> Tensor:
        """Chunks of logits `[batch, tokens / num_output_chunks, V]`, labels `[batch, tokens]` -> mean."""
        of_labels = labels.chunk(self.num_output_chunks, dim=1)
        if not len(student_logits) == len(teacher_logits) == len(of_labels):
            raise ValueError(
                f"student_logits and teacher_logits must have as many chunks as labels have, {len(of_labels)}; got "
                f"{len(student_logits)} and {len(teacher_logits)}"
            )
        chunks = zip(student_logits, teacher_logits, of_labels, strict=True)
        count = (labels != self.ignore_index).sum().clamp(min=1)
        return sum(self._total(*chunk, "sum") for chunk in chunks) / count


def _checked(sym_kd_ratio: float) -> float:
    if not 0 <= sym_kd_ratio <= 1:
        raise ValueError("sym_kd_ratio must be in the range [0, 1]")
    return sym_kd_ratio


class ForwardKLLoss(_OfLogits):
    """-sum p log q."""

    def __init__(self, ignore_index: int = -100):
        super().__init__(1.0, ignore_index)


class ReverseKLLoss(_OfLogits):
    """KL(q, p)."""

    def __init__(self, ignore_index: int = -100):
        super().__init__(0.0, ignore_index)


class SymmetricKLLoss(_OfLogits):
    """sym_kd_ratio times `ForwardKLLoss`, the rest times `ReverseKLLoss`; both in one pass."""

    def __init__(self, sym_kd_ratio: float = 0.5, ignore_index: int = -100):
        super().__init__(_checked(sym_kd_ratio), ignore_index)
        self.sym_kd_ratio = sym_kd_ratio


class ForwardKLWithChunkedOutputLoss(_OfChunks):
    """`ForwardKLLoss` of logits in chunks of tokens."""

    def __init__(self, num_output_chunks: int = 8, ignore_index: int = -100):
        super().__init__(num_output_chunks, 1.0, ignore_index)


class ReverseKLWithChunkedOutputLoss(_OfChunks):
    """`ReverseKLLoss` of logits in chunks of tokens."""

    def __init__(self, num_output_chunks: int = 8, ignore_index: int = -100):
        super().__init__(num_output_chunks, 0.0, ignore_index)


class SymmetricKLWithChunkedOutputLoss(_OfChunks):
    """`SymmetricKLLoss` of logits in chunks of tokens."""

    def __init__(self, num_output_chunks: int = 8, sym_kd_ratio: float = 0.5, ignore_index: int = -100):
        super().__init__(num_output_chunks, _checked(sym_kd_ratio), ignore_index)
        self.sym_kd_ratio = sym_kd_ratio
