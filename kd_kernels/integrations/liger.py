"""Distillation losses of Liger, by its names and arguments.

From `liger_kernel.chunked_loss` `LigerFusedLinearJSDLoss`; from `liger_kernel.transformers` `LigerFusedLinearJSD`,
`LigerFusedLinearKLDivLoss`, `LigerJSD`, `LigerKLDIVLoss` and `LigerTVDLoss`. They need no GPU, and nothing of Liger.

Losses of log-probabilities or probabilities have the gradient of the softmax that made them: it differs from Liger's by
a vector that the backward pass of this softmax removes.
"""

import torch
from torch import Tensor, nn

import kd_kernels as kd


class LigerFusedLinearJSDLoss(nn.Module):
    """weight_hard_loss times the cross-entropy plus weight_soft_loss times the generalised JSD, from hidden states.

    Both are means over the tokens that count. A teacher whose vocabulary is longer, by padding, is compared in the
    columns that the student has.

    Args:
        weight_hard_loss, weight_soft_loss: weights of the two terms.
        beta: weight of the teacher; 0 is the forward KL, 1 the reverse KL.
        ignore_index: label of tokens that do not count.
        temperature: T of the JSD, of both sides; the cross-entropy has none.
        compiled, chunk_size: accepted; nothing is compiled, and chunks follow from the shapes.
        return_soft_hard_loss: return (loss, JSD, cross-entropy).
    """

    def __init__(
        self,
        weight_hard_loss: float = 0.5,
        weight_soft_loss: float = 0.5,
        beta: float = 0.5,
        ignore_index: int = -100,
        temperature: float = 1.0,
        compiled: bool = True,
        chunk_size: int = 1024,
        return_soft_hard_loss: bool = False,
    ):
        super().__init__()
        _check_temperature(temperature)
        self.weight_hard_loss, self.weight_soft_loss = weight_hard_loss, weight_soft_loss
        self.beta, self.ignore_index, self.temperature = beta, ignore_index, temperature
        self.compiled, self.chunk_size, self.return_soft_hard_loss = compiled, chunk_size, return_soft_hard_loss

    def forward(
        self,
        student_input: Tensor,  # (BT, H)
        student_weight: Tensor,  # (V, H)
        teacher_input: Tensor,  # (BT, H')
        teacher_weight: Tensor,  # (V', H'), V' >= V
        true_labels: Tensor,  # (BT)
        student_bias: Tensor | None = None,
        teacher_bias: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Tensor, Tensor]:
        student = kd.Head(student_input, student_weight, student_bias)
        longer = len(teacher_weight) > len(student_weight)
        counted = {"labels": true_labels, "ignore_index": self.ignore_index}
        soft = kd.divergence(
            student, kd.Head(teacher_input, teacher_weight, teacher_bias), "jsd", beta=self.beta,
            temperature=self.temperature, vocab="common" if longer else "strict", **counted,
        )  # fmt: skip
        loss = self.weight_soft_loss * soft
        if not self.weight_hard_loss and not self.return_soft_hard_loss:
            return loss
        text = kd.TopK(true_labels[:, None], soft.new_zeros(len(true_labels), 1), tail="truncate")
        hard = kd.divergence(student, text, "forward_kl", **counted)
        loss = loss + self.weight_hard_loss * hard
        return (loss, soft.detach(), hard.detach()) if self.return_soft_hard_loss else loss


class LigerFusedLinearJSD(nn.Module):
    """Generalised JSD from hidden states, the mean over the tokens that count.

    Args:
        jsd_beta: weight of the teacher; 0 is the forward KL, 1 the reverse KL.
        ignore_index: label of tokens that do not count.
        temperature: T, of both sides.
        accum_dtype: accepted; gradients are accumulated in float32.
    """

    def __init__(
        self,
        jsd_beta: float = 0.5,
        ignore_index: int = -100,
        temperature: float = 1.0,
        accum_dtype: torch.dtype | None = None,
    ):
        super().__init__()
        _check_temperature(temperature)
        self.jsd_beta, self.ignore_index, self.temperature = jsd_beta, ignore_index, temperature
        self.accum_dtype = accum_dtype

    def forward(
        self,
        student_input: Tensor,  # (BT, H)
        student_weight: Tensor,  # (V, H)
        teacher_input: Tensor,  # (BT, H')
        teacher_weight: Tensor,  # (V, H')
        shift_labels: Tensor | None = None,  # (BT)
    ) -> Tensor:
        return kd.divergence(
            kd.Head(student_input, student_weight), kd.Head(teacher_input, teacher_weight), "jsd", beta=self.jsd_beta,
            temperature=self.temperature, labels=shift_labels, ignore_index=self.ignore_index,
        )  # fmt: skip


class LigerFusedLinearKLDivLoss(nn.Module):
    """Forward KL from hidden states to given probabilities: sum p (log p - log q), q at T.

    Args:
        reduction: "batchmean" by the number of tokens that count, "mean" by that times V, or "sum".
        ignore_index: label of tokens that do not count.
        temperature: T of the student.
        eps: accepted; an entry of probability 0 contributes 0.
        accum_dtype: accepted; gradients are accumulated in float32.
    """

    def __init__(
        self,
        reduction: str = "batchmean",
        ignore_index: int = -100,
        temperature: float = 1.0,
        eps: float = 1e-10,
        accum_dtype: torch.dtype | None = None,
    ):
        super().__init__()
        _check_temperature(temperature)
        _check_reduction(reduction, ("batchmean", "mean", "sum"))
        self.reduction, self.ignore_index, self.temperature = reduction, ignore_index, temperature
        self.eps, self.accum_dtype = eps, accum_dtype

    def forward(
        self,
        student_input: Tensor,  # (BT, H)
        student_weight: Tensor,  # (V, H)
        target: Tensor,  # (BT, V) probabilities
        shift_labels: Tensor | None = None,  # (BT)
    ) -> Tensor:
        counted = target.new_ones(len(target), dtype=torch.bool)
        if shift_labels is not None:
            counted = shift_labels != self.ignore_index
        # A row of mass a is a distribution p / a: sum p (log p - log q) = a KL(p / a, q) + a log a.
        real = torch.promote_types(target.dtype, torch.float32)
        mass = torch.where(counted, target.sum(-1, dtype=real), 0)
        total = kd.divergence(
            kd.Head(student_input, student_weight), target.log(), "forward_kl", temperature=(self.temperature, 1.0),
            mask=mass, reduction="sum",
        )  # fmt: skip
        total = total + torch.xlogy(mass, mass).sum()
        return total / _divisor(self.reduction, counted, target.shape[1])


class LigerJSD(nn.Module):
    """Generalised JSD of log-probabilities, the mean over the tokens that count.

    Args:
        beta: weight of the teacher; 0 is the forward KL, 1 the reverse KL.
        ignore_index: label of tokens that do not count.
    """

    def __init__(self, beta: float = 0.5, ignore_index: int = -100):
        super().__init__()
        self.beta, self.ignore_index = beta, ignore_index

    def forward(
        self,
        log_q: Tensor,  # (BT, V), the student's
        log_p: Tensor,  # (BT, V), the teacher's
        shift_labels: Tensor | None = None,  # (BT)
    ) -> Tensor:
        return kd.divergence(log_q, log_p, "jsd", beta=self.beta, labels=shift_labels, ignore_index=self.ignore_index)


class LigerKLDIVLoss(nn.KLDivLoss):
    """Forward KL of the student's log-probabilities and the teacher's probabilities, or with `log_target` logarithms.

    Args:
        eps: accepted; an entry of probability 0 contributes 0.
        *args, **kwargs: those of `torch.nn.KLDivLoss`. With `reduction="none"` it is that class.
    """

    def __init__(self, eps: float = 1e-10, *args, **kwargs):
        super().__init__(*args, **kwargs)
        _check_reduction(self.reduction, ("none", "batchmean", "mean", "sum"))
        self.eps = eps

    def forward(self, y_pred: Tensor, y_true: Tensor) -> Tensor:
        """`[BT, V]`, `[BT, V]` -> 0-d, or `[BT, V]` for "none"."""
        if self.reduction == "none":
            return super().forward(y_pred, y_true)
        log_p = y_true if self.log_target else y_true.log()
        if self.reduction == "sum":
            return kd.divergence(y_pred, log_p, "forward_kl", reduction="sum")
        divisor = len(y_pred) * (y_pred.shape[1] if self.reduction == "mean" else 1)
        return kd.divergence(y_pred, log_p, "forward_kl", normalizer=divisor)


class LigerTVDLoss(nn.Module):
    """Total variation distance of probabilities, sum |p - q| / 2.

    Args:
        reduction: "batchmean" by the number of tokens that count, "mean" by that times V, "sum", or "none", entry by
            entry.
        ignore_index: label of tokens that do not count.
    """

    def __init__(self, reduction: str = "batchmean", ignore_index: int = -100):
        super().__init__()
        _check_reduction(reduction, ("none", "batchmean", "mean", "sum"))
        self.reduction, self.ignore_index = reduction, ignore_index

    def forward(
        self,
        p: Tensor,  # (BT, V), the student's
        q: Tensor,  # (BT, V), the teacher's
        shift_labels: Tensor | None = None,  # (BT)
    ) -> Tensor:
        counted = p.new_ones(len(p), dtype=torch.bool)
        if shift_labels is not None:
            counted = shift_labels != self.ignore_index
        if self.reduction == "none":
            return torch.where(counted[:, None], 0.5 * (p - q).abs(), 0)
        smallest = torch.finfo(p.dtype).tiny  # below it a probability is 0
        log_p, log_q = (x.clamp_min(smallest).log() for x in (p, q))
        total = kd.divergence(log_p, log_q, "tvd", mask=counted, reduction="sum")
        return total / _divisor(self.reduction, counted, p.shape[1])


def _divisor(reduction: str, counted: Tensor, columns: int) -> Tensor | int:
    if reduction == "sum":
        return 1
    return counted.sum().clamp(min=1) * (columns if reduction == "mean" else 1)


def _check_temperature(temperature: float) -> None:
    if temperature == 0:
        raise ValueError("temperature cannot be 0")


def _check_reduction(reduction: str, known: tuple[str, ...]) -> None:
    if reduction not in known:
        raise ValueError(f"reduction must be one of {', '.join(known)}, got {reduction!r}")
