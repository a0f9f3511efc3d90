"""ULD: universal logit distillation, across tokenizers."""

import torch
from torch import Tensor

from kd_kernels import sorted_l1
from kd_kernels.methods import arguments
from kd_kernels.methods.alignment import counted, ranks
from kd_kernels.transport.arguments import choice, row_mask

REDUCTIONS = ("sequence_mean", "mean", "sum", "none")


def uld(
    student_logits: Tensor,
    teacher_logits: Tensor,
    student_mask: Tensor | None = None,
    teacher_mask: Tensor | None = None,
    *,
    temperature: float | tuple[float, float] = 1.0,
    reduction: str = "sequence_mean",
    top_k: int | None = None,
    backend: str = "auto",
) -> Tensor:
    """sum_k |q_(k) - p_(k)| of tokens whose distributions are sorted, each by itself (Boizard et al. 2024).

    Of each sequence the t-th token that counts of the student goes with the t-th of the teacher, up to the shorter of
    the two. Gradients go to the student.

    Args:
        student_logits: `[B, L, V]`, float32, bfloat16, float16 or float64.
        teacher_logits: `[B, L', V']` of the same texts, of any tokenizer. A copy is made of those that are needed,
            unless both masks are one.
        student_mask: tokens that count, bool or integer `[B, L]`; None for all. The others are not read.
        teacher_mask: likewise `[B, L']`.
        temperature: T, or a pair (student's, teacher's).
        reduction: "sequence_mean": the mean over the tokens of a sequence, and of that the mean over the sequences
            that have any; "mean" over all tokens; "sum"; "none": `[B, L]`, where the student's tokens stand.
        top_k: compare the k likeliest of each side alone.
        backend: "auto", "cpu", "cuda", "triton" or "reference".

    Returns:
        float32, or float64 for float64 logits.

    Raises:
        ValueError: a shape, range, device or name that does not fit.
        TypeError: a dtype or type that does not fit.
        RuntimeError: a backend that is not available in this installation.
    """
    arguments.logits(student_logits, teacher_logits, "[B, L, V]")
    arguments.same_batch(student_logits, teacher_logits, 2)
    choice("reduction", reduction, REDUCTIONS)
    student_mask = row_mask("student_mask", student_mask, student_logits)
    same = teacher_mask is student_mask and teacher_logits.shape[1] == student_logits.shape[1]
    teacher_mask = row_mask("teacher_mask", teacher_mask, teacher_logits)
    mask = student_mask
    if not same:
        teacher_logits, mask = _at_the_students_tokens(teacher_logits, teacher_mask, student_logits, student_mask)
    options = {"temperature": temperature, "top_k": top_k, "backend": backend}
    if reduction != "sequence_mean":
        return sorted_l1(student_logits, teacher_logits, mask=mask, reduction=reduction, **options)
    if mask is None:
        mask = torch.ones_like(student_logits[:, :, 0], dtype=torch.bool)
    lengths = mask.sum(1, keepdim=True)
    real = torch.float64 if student_logits.dtype == torch.float64 else torch.float32
    share = 1 / (lengths.clamp(min=1) * (lengths > 0).sum().clamp(min=1)).to(real)
    return sorted_l1(student_logits, teacher_logits, mask=torch.where(mask, share, 0), reduction="sum", **options)


def _at_the_students_tokens(teacher, teacher_mask, student, student_mask) -> tuple[Tensor, Tensor]:
    """The teacher's rows [B, L, V'] where the student's tokens are that they go with, and which [B, L] do."""
    positions, lengths = counted(teacher_mask, teacher)
    rank = ranks(student_mask, student)
    paired = rank < lengths[:, None]
    if student_mask is not None:
        paired = paired & student_mask
    if positions.shape[1] == 0:
        return teacher.new_zeros((*student.shape[:2], teacher.shape[2])), paired
    at = positions.gather(1, rank.clamp(max=positions.shape[1] - 1))
    return teacher[torch.arange(len(at), device=at.device)[:, None], at], paired
