"""The loss of DistillationTrainer, from hidden states and LM heads."""

import torch
from torch import Tensor

import kd_kernels as kd


def build(original):
    return _chunked_divergence_loss


def _chunked_divergence_loss(
    student_hidden_states,
    teacher_hidden_states,
    student_lm_head_weight,
    teacher_lm_head_weight,
    completion_mask,
    beta,
    num_items_in_batch=None,
    student_lm_head_bias=None,
    teacher_lm_head_bias=None,
    student_logit_scale=1.0,
    teacher_logit_scale=1.0,
    student_final_logit_softcapping=None,
    teacher_final_logit_softcapping=None,
    temperature=1.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """(loss, sum of the student's entropies, number of tokens that count)."""
    from trl.trainer.utils import maybe_gather_lm_head_ctx  # of ZeRO-3; otherwise it does nothing

    of_student = (student_lm_head_weight, student_lm_head_bias)
    of_teacher = (teacher_lm_head_weight, teacher_lm_head_bias)
    with maybe_gather_lm_head_ctx(*of_student), maybe_gather_lm_head_ctx(*of_teacher):
        student = kd.Head(
            student_hidden_states, *_whole(*of_student, student_hidden_states),
            student_logit_scale, student_final_logit_softcapping,
        )  # fmt: skip
        teacher = kd.Head(
            teacher_hidden_states, *_whole(*of_teacher, teacher_hidden_states),
            teacher_logit_scale, teacher_final_logit_softcapping,
        )  # fmt: skip
        total, stats = kd.divergence(
            student, teacher, "jsd", beta=beta, temperature=temperature, mask=completion_mask != 0, reduction="sum",
            return_stats=True,
        )  # fmt: skip
    divisor = stats.n_valid.clamp(min=1) if num_items_in_batch is None else num_items_in_batch
    if isinstance(divisor, Tensor):
        divisor = divisor.to(total.device)
    return total / divisor, stats.student_entropy, stats.n_valid


def _whole(weight: Tensor, bias: Tensor | None, hidden: Tensor) -> tuple[Tensor, Tensor | None]:
    """A head that FSDP2 has sharded, gathered once for all chunks."""
    if not isinstance(weight, torch.distributed.tensor.DTensor):
        return weight, bias
    return weight.full_tensor().to(hidden.dtype), None if bias is None else bias.full_tensor()
