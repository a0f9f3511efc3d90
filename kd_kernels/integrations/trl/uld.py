"""The ULD loss of GOLDTrainer: tokens of two tokenizers, aligned by the bytes they stand for."""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

import kd_kernels as kd
from kd_kernels.integrations import masses
from kd_kernels.integrations.trl.jsd import SMALLEST

LOG_SMALLEST = math.log(SMALLEST)
# Logits of the groups that are worked on at a time: 8 MB in float32.
CHUNK_ENTRIES = 1 << 21


class Factor(NamedTuple):
    """A probability that a group is multiplied by: that of `token` in a row of logits."""

    group: int
    row: int
    token: int


class Side(NamedTuple):
    """Groups of tokens on one side.

    Attributes:
        temperature: of this side.
        rows: of each group, the row of logits with its distribution.
        factors: of the groups of several tokens, the probabilities of the others.
    """

    temperature: float
    rows: list[int]
    factors: list[Factor]

    def part(self, start: int, end: int) -> "Side":
        """The groups from `start` to `end`, counted from 0."""
        factors = [f._replace(group=f.group - start) for f in self.factors if start <= f.group < end]
        return self._replace(rows=self.rows[start:end], factors=factors)

    def index(self, device: torch.device) -> Tensor:
        """All rows of logits that the groups need, those with their distributions first; none occurs twice."""
        return torch.tensor(self.rows + [f.row for f in self.factors], dtype=torch.long, device=device)

    def of(self, logits: Tensor) -> "Groups":
        """The groups, of the rows of logits that are in the index."""
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        x, others = logits.split([len(self.rows), len(self.factors)])
        log_factors = torch.zeros(len(x), dtype=x.dtype, device=x.device)
        if self.factors:
            groups, _, tokens = torch.tensor(self.factors, device=x.device).unbind(1)
            negated = F.cross_entropy(others / self.temperature, tokens, reduction="none")
            log_factors = log_factors.index_add(0, groups, (-negated).clamp_min(LOG_SMALLEST))
        return Groups(x, self.temperature, log_factors, sorted({f.group for f in self.factors}))


class Groups(NamedTuple):
    """Distributions of groups: logits `[groups, V]`, and what their probabilities are multiplied by, `[groups]`; which
    groups are of several tokens."""

    logits: Tensor
    temperature: float
    log_factors: Tensor
    merged: list[int]

    def log_masses(self) -> Tensor:
        """`[groups, V]`."""
        return (self.logits / self.temperature).log_softmax(-1) + self.log_factors[:, None]

    def only(self, groups: list[int]) -> "Groups":
        return self._replace(logits=self.logits[groups], log_factors=self.log_factors[groups])


def build(original):
    return _compute_distillation_loss


def _compute_distillation_loss(
    self,
    student_logits,
    teacher_logits,
    student_labels,
    teacher_labels,
    student_input_ids,
    teacher_input_ids,
    student_byte_offsets=None,
    teacher_byte_offsets=None,
) -> Tensor:
    """Mean over the sequences of the mean over their groups; a sequence without groups counts as 0."""
    sides = Side(self.student_temperature, [], []), Side(self.teacher_temperature, [], [])
    sizes = []  # groups of each sequence
    answers = [
        _answers(self, student_labels, self.skip_student_eos),
        _answers(self, teacher_labels, self.skip_teacher_eos),
    ]
    ids, offsets = (student_input_ids, teacher_input_ids), (student_byte_offsets, teacher_byte_offsets)
    for i, spans in enumerate(zip(*answers, strict=True)):
        pairs = _pairs(self, i, spans, offsets)
        for side, x, (start, _), groups in zip(sides, ids, spans, zip(*pairs, strict=True), strict=False):
            _append(side, groups, x[i].tolist(), start, i * x.shape[1], self.token_merge_strategy)
        sizes.append(len(pairs))
    if not any(sizes):
        return student_logits[..., :0].sum()  # 0 of the student, so that there is a gradient
    hybrid = self.use_hybrid_loss and self._vocab_mapping is not None
    loss_of = _Hybrid(self) if hybrid else _sorted
    shares = [1 / (size * len(sizes)) for size in sizes for _ in range(size)]
    loss = _Chunks.apply(student_logits.flatten(0, 1), teacher_logits.detach().flatten(0, 1), *sides, shares, loss_of)
    if hybrid:
        # The trainer logs them: of the last sequence, as it has always done.
        last = next(size for size in reversed(sizes) if size)
        self.last_matched_loss, self.last_unmatched_loss = loss_of.parts(last)
    return self.distillation_weight * loss


class _Chunks(torch.autograd.Function):
    """Weighted sum of the losses of groups, a chunk of them at a time.

    The gradient is computed along with the value, into a tensor like the student's logits; of what else a chunk takes
    nothing stays.
    """

    @staticmethod
    def forward(ctx, student_logits, teacher_logits, student, teacher, shares, loss_of):
        device, wanted = student_logits.device, ctx.needs_input_grad[0]
        total = torch.zeros((), dtype=torch.promote_types(student_logits.dtype, torch.float32), device=device)
        gradient = torch.zeros_like(student_logits) if wanted else None
        size = max(1, CHUNK_ENTRIES // max(student_logits.shape[1], teacher_logits.shape[1]))
        for start in range(0, len(shares), size):
            of_student, of_teacher = (side.part(start, start + size) for side in (student, teacher))
            index = of_student.index(device)
            x = student_logits.detach()[index].requires_grad_(wanted)
            groups = of_teacher.of(teacher_logits[of_teacher.index(device)])
            weights = torch.tensor(shares[start : start + size], dtype=total.dtype, device=device)
            with torch.set_grad_enabled(wanted):
                value = loss_of(of_student.of(x), groups) @ weights
            total += value.detach()
            if wanted:
                gradient.index_copy_(0, index, *torch.autograd.grad(value, x))
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, upstream):
        (gradient,) = ctx.saved_tensors
        return gradient * upstream.to(gradient.dtype), None, None, None, None, None


def _answers(self, labels: Tensor, skip_eos: bool) -> list[tuple[int, int]]:
    """Where the answer of each sequence starts, and how many tokens it has."""
    starts, sizes = self._get_start_and_size_answers(labels)
    return [(start, size - skip_eos) for start, size in zip(starts, sizes, strict=True)]


def _pairs(self, i: int, spans, offsets) -> list[tuple[list[int], list[int]]]:
    """Groups of tokens of a sequence that go together, by their places in the two answers."""
    sizes = [size for _, size in spans]
    if min(sizes) <= 0:
        return []
    if self.use_extended_uld:
        if any(x is None for x in offsets):
            raise ValueError("Byte offsets are required when `use_extended_uld=True`.")
        of_answers = [x[i, start : start + size].tolist() for x, (start, size) in zip(offsets, spans, strict=True)]
        pairs = list(zip(*self._align_by_byte_offsets(*of_answers), strict=False))
    else:
        pairs = [([k], [k]) for k in range(min(sizes))]
    if self.token_merge_strategy == "bayesian" and any(start == 0 for start, _ in spans):
        pairs = pairs[1:]  # no logits predict the first token of a text
    return [pair for pair in pairs if all(pair)]


def _append(side: Side, groups, ids: list[int], start: int, sequence: int, strategy: str) -> None:
    """Adds the groups of a sequence, whose logits begin at the row `sequence`."""
    bayesian = strategy == "bayesian"
    before = sequence + start - bayesian  # with "bayesian", the row that predicts the first token of the answer
    for group in groups:
        base, others = (group[-1], group[:-1]) if bayesian else (group[0], group[1:])
        side.factors.extend(Factor(len(side.rows), before + k, ids[start + k]) for k in others)
        side.rows.append(before + base)


def _sorted(student: Groups, teacher: Groups) -> Tensor:
    """Sorted L1 of each group: of logits, but for those of several tokens."""
    merged = sorted({*student.merged, *teacher.merged})
    rows = kd.sorted_l1(
        student.logits, teacher.logits, temperature=(student.temperature, teacher.temperature), reduction="none"
    )
    if not merged:
        return rows
    of_masses = masses.sorted_l1(student.only(merged).log_masses(), teacher.only(merged).log_masses())
    return rows.index_copy(0, torch.tensor(merged, device=rows.device), of_masses)


class _Hybrid:
    """JSD of the entries that both vocabularies have, sorted L1 of the others, of each group.

    Attributes:
        matched, unmatched: the two losses of the groups there have been.
    """

    def __init__(self, loss: Any):
        self.loss = loss
        self.matched: list[Tensor] = []
        self.unmatched: list[Tensor] = []

    def __call__(self, student: Groups, teacher: Groups) -> Tensor:
        loss, device = self.loss, student.logits.device
        of_teacher = torch.tensor(sorted(loss._teacher_matched_ids), dtype=torch.long, device=device)
        of_student = loss.mapping_tensor.to(device)[of_teacher]
        matched_q, rest_q = _split(student, of_student)
        matched_p, rest_p = _split(teacher, of_teacher)

        matched = masses.jsd(matched_q.clamp_min(LOG_SMALLEST), matched_p.clamp_min(LOG_SMALLEST), loss.beta)
        both = rest_q.shape[1] and rest_p.shape[1]
        unmatched = masses.sorted_l1(rest_q, rest_p) if both else torch.zeros_like(matched)
        self.matched.append(matched.detach())
        self.unmatched.append(unmatched.detach())

        if loss.hybrid_matched_weight is None:
            of_matched = len(of_teacher) / max(1, teacher.logits.shape[1])
            return of_matched * matched + (1 - of_matched) * unmatched
        return loss.hybrid_matched_weight * matched + loss.hybrid_unmatched_weight * unmatched

    def parts(self, groups: int) -> tuple[Tensor, Tensor]:
        """Means of the two losses over this number of groups, the last ones."""
        return torch.cat(self.matched)[-groups:].mean(), torch.cat(self.unmatched)[-groups:].mean()


def _split(groups: Groups, matched: Tensor) -> tuple[Tensor, Tensor]:
    """Masses of these entries of the vocabulary, and of the others."""
    log_masses = groups.log_masses()
    rest = torch.ones(log_masses.shape[1], dtype=torch.bool, device=log_masses.device)
    rest[matched] = False
    return log_masses[:, matched], log_masses[:, rest]
