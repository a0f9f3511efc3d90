"""The generalised JSD of GKDTrainer and GOLDTrainer."""

import torch
from torch import Tensor

import kd_kernels as kd
from kd_kernels.integrations import masses

SMALLEST = 1e-8  # TRL's bound of the probabilities that it takes logarithms of


def build_gkd(original):
    def generalized_jsd_loss(
        student_logits,
        teacher_logits,
        labels=None,
        beta=0.5,
        temperature=1.0,
        reduction="batchmean",
        num_items_in_batch=None,
    ):
        options = {"labels": labels, "beta": beta, "reduction": reduction, "num_items_in_batch": num_items_in_batch}
        if _entry_by_entry(reduction, num_items_in_batch):
            return original(student_logits, teacher_logits, temperature=temperature, **options)
        return _of_logits(student_logits, teacher_logits, temperature=temperature, **options)

    return generalized_jsd_loss


def build_gold(original):
    def generalized_jsd_loss(
        student_logits,
        teacher_logits,
        labels=None,
        beta=0.5,
        temperature=1.0,
        reduction="batchmean",
        logits_are_probs=False,
        num_items_in_batch=None,
    ):
        options = {"labels": labels, "beta": beta, "reduction": reduction, "num_items_in_batch": num_items_in_batch}
        if _entry_by_entry(reduction, num_items_in_batch):
            return original(
                student_logits, teacher_logits, temperature=temperature, logits_are_probs=logits_are_probs, **options
            )
        if logits_are_probs:
            return _of_probabilities(student_logits, teacher_logits, **options)
        return _of_logits(student_logits, teacher_logits, temperature=temperature, **options)

    return generalized_jsd_loss


def _entry_by_entry(reduction: str, num_items_in_batch) -> bool:
    """Whether the result is to be as large as the logits; that is what TRL makes of every other reduction."""
    return num_items_in_batch is None and reduction not in ("batchmean", "sum", "mean")


def _of_logits(student, teacher, *, labels, beta, temperature, reduction, num_items_in_batch) -> Tensor:
    options = {"beta": beta, "temperature": temperature, "labels": labels}
    if num_items_in_batch is None and reduction == "sum":
        return kd.divergence(student, teacher, "jsd", reduction="sum", **options)
    divisor = num_items_in_batch
    if divisor is None and reduction == "batchmean" and labels is None:
        divisor = max(len(student), 1)
    loss = kd.divergence(student, teacher, "jsd", normalizer=divisor, **options)
    by_entry = num_items_in_batch is None and reduction == "mean"
    return loss / student.shape[-1] if by_entry else loss


def _of_probabilities(student, teacher, *, labels, beta, reduction, num_items_in_batch) -> Tensor:
    """Of probabilities that need not add up to 1: entries of a vocabulary, or products of probabilities."""
    log_q, log_p = (x.clamp_min(SMALLEST).log() for x in (student, teacher.detach()))
    rows = masses.jsd(log_q, log_p, beta)
    if labels is not None:
        rows = torch.where(labels != -100, rows, 0)
    total = rows.sum()
    if num_items_in_batch is not None:
        return total / num_items_in_batch
    if reduction == "sum":
        return total
    if labels is not None:
        counted = (labels != -100).sum().clamp_min(1)
    else:
        counted = max(len(student), 1) if reduction == "batchmean" else max(rows.numel(), 1)
    return total / (counted if reduction == "batchmean" else counted * student.shape[-1])
