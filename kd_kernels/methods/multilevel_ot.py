"""MultiLevelOT: optimal transport between tokens and between sequences, across tokenizers."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from kd_kernels import l1_cost, sinkhorn
from kd_kernels.arguments import temperatures
from kd_kernels.methods import arguments
from kd_kernels.methods.alignment import Counted, before, counted
from kd_kernels.transport.arguments import choice, count, row_mask
from kd_kernels.transport.entries import likeliest


@dataclass(frozen=True)
class MultilevelOTLoss:
    """The loss and its parts, 0-d: total = alpha (had + beta sl + gamma sd).

    Attributes:
        total: what to minimise, beside a cross-entropy of the user's own.
        had: holistic absolute differences of tokens.
        sl: sequential logarithmic cost of tokens.
        sd: Sinkhorn distance of sequences.
    """

    total: Tensor
    had: Tensor
    sl: Tensor
    sd: Tensor


class Form(NamedTuple):
    """Where the paper and the code published with it differ. The defaults are the paper's."""

    alpha: float = 0.15
    iterations: int = 20
    std_norm: bool = False
    batch_permutation: bool = False
    token_mean: bool = False
    swap_roles: bool = False
    double_softmax: bool = False
    include_padding: bool = False
    sd_scale: float = 1.0
    sd_sum: bool = False


FORMS = {
    "paper": Form(),
    "released": Form(
        alpha=1.5, iterations=10, std_norm=True, batch_permutation=True, token_mean=True, swap_roles=True,
        double_softmax=True, include_padding=True, sd_scale=0.001, sd_sum=True,
    ),
}  # fmt: skip


def multilevel_ot(
    student_logits: Tensor,
    teacher_logits: Tensor,
    student_mask: Tensor | None = None,
    teacher_mask: Tensor | None = None,
    *,
    k: int = 50,
    form: str = "paper",
    beta: float = 0.1,
    gamma: float = 0.1,
    tau_sl: float = 1.0,
    tau_sd: float = 2.0,
    eps: float = 0.1,
    grad: str = "unrolled",
    alpha: float | None = None,
    iterations: int | None = None,
    std_norm: bool | None = None,
    batch_permutation: bool | None = None,
    token_mean: bool | None = None,
    swap_roles: bool | None = None,
    double_softmax: bool | None = None,
    include_padding: bool | None = None,
    sd_scale: float | None = None,
    sd_sum: bool | None = None,
    backend: str = "auto",
) -> MultilevelOTLoss:
    """alpha (HAD + beta SL + gamma SD), distillation across tokenizers (Cui et al. 2025, arXiv 2412.14528).

    Each side keeps the k entries of its vocabulary with the largest sums of probabilities over a sequence, in that
    order. With s and t the k probabilities of student and teacher at tau_sl, tokens aligned from the first that counts:

        HAD = sum over tokens and entries of |t - s|        SL = -sum over tokens and entries of t log s
        SD = <P, C>, P the Sinkhorn plan of C_ij = |t_i - s_j|_1 between all tokens of both sides, at tau_sd

    each of them averaged over the sequences that have tokens on both sides. HAD and SL end with the shorter side; SD
    has all the teacher's tokens as rows, which are scaled first, and all the student's as columns. Of tensors as large
    as the logits only the student's gradient is made.

    Args:
        student_logits: `[B, L, V]`, float32, bfloat16, float16 or float64.
        teacher_logits: `[B, L', V']` of the same texts, of any tokenizer.
        student_mask: tokens of the answer, bool or integer `[B, L]`; None for all. The others are not read.
        teacher_mask: likewise `[B, L']`.
        k: entries kept of each vocabulary.
        form: "paper" or "released": the defaults of what follows `grad`.
        beta, gamma: weights of SL and SD.
        tau_sl: temperature of HAD, SL and the ranking.
        tau_sd: temperature of SD.
        eps: strength of the entropy in SD.
        grad: "unrolled", "implicit" or "detached", as for `sinkhorn`.
        alpha: weight of everything: 0.15; released: 1.5.
        iterations: of Sinkhorn: 20; released: 10.
        std_norm: divide logits by their standard deviation over the vocabulary plus 1e-4, differentiably.
        batch_permutation: rank entries by sums over the whole batch, one order for all sequences.
        token_mean: HAD and SL are means over the tokens of a sequence.
        swap_roles: SL = -sum s log t.
        double_softmax: SL and SD take the softmax of the k probabilities, SD of probabilities over tau_sd, in place of
            s and t.
        include_padding: SL and SD go on to the longest answer of the batch on either side, with probabilities 0, and
            every sequence counts. A token's SL is infinite where its probabilities are 0 against others that are not,
            unless there is a double softmax.
        sd_scale: factor of SD: 1; released: 0.001.
        sd_sum: SD is summed over the batch.
        backend: "auto", "cpu", "cuda", "triton" or "reference".

    Returns:
        A `MultilevelOTLoss`, float32, or float64 for float64 logits.

    Raises:
        ValueError: a shape, range, device or name that does not fit.
        TypeError: a dtype or type that does not fit.
        RuntimeError: a backend that is not available in this installation.
    """
    arguments.logits(student_logits, teacher_logits, "[B, L, V]")
    arguments.same_batch(student_logits, teacher_logits, 2)
    chosen = _form(
        form, alpha=alpha, iterations=iterations, std_norm=std_norm, batch_permutation=batch_permutation,
        token_mean=token_mean, swap_roles=swap_roles, double_softmax=double_softmax, include_padding=include_padding,
        sd_scale=sd_scale, sd_sum=sd_sum,
    )  # fmt: skip
    arguments.factor("beta", beta)
    arguments.factor("gamma", gamma)
    smaller = min(student_logits.shape[-1], teacher_logits.shape[-1])
    if count("k", k) > smaller:
        raise ValueError(f"k must be at most {smaller}, the smaller vocabulary, got {k}")
    tau_sl, tau_sd = temperatures((tau_sl, tau_sd))
    student_mask = row_mask("student_mask", student_mask, student_logits)
    teacher_mask = row_mask("teacher_mask", teacher_mask, teacher_logits)

    student = _Side.of(student_logits, student_mask, (tau_sl, tau_sd), k, chosen)
    teacher = _Side.of(teacher_logits.detach(), teacher_mask, (tau_sl, tau_sd), k, chosen)
    lengths = torch.minimum(student.tokens.lengths, teacher.tokens.lengths)
    had = _absolute(student, teacher, lengths)
    if chosen.include_padding:
        longest = torch.maximum(student.tokens.lengths, teacher.tokens.lengths)
        longest = (longest.max() if longest.numel() else longest.sum()).expand_as(lengths)
        width = max(x.tokens.positions.shape[1] for x in (student, teacher))
        student, teacher = student.padded(width, longest), teacher.padded(width, longest)
        sequences = max(1, len(lengths))
        sl, sl_tokens = _logarithmic(student, teacher, longest, chosen), longest
    else:
        sequences = (lengths > 0).sum().clamp(min=1)
        sl, sl_tokens = _logarithmic(student, teacher, lengths, chosen), lengths
    if chosen.token_mean:
        had, sl = had / lengths.clamp(min=1), sl / sl_tokens.clamp(min=1)
    sd = _between_sequences(student, teacher, tau_sd, eps, grad, chosen, backend).sum() * chosen.sd_scale
    had, sl, sd = had.sum() / sequences, sl.sum() / sequences, sd if chosen.sd_sum else sd / sequences
    return MultilevelOTLoss(chosen.alpha * (had + beta * sl + gamma * sd), had, sl, sd)


class _Side(NamedTuple):
    """Log-probabilities (B, T, k) at both temperatures; -inf for tokens that are not there."""

    at_sl: Tensor
    at_sd: Tensor
    tokens: Counted

    @classmethod
    def of(cls, logits: Tensor, mask: Tensor | None, taus: tuple[float, float], k: int, form: Form) -> "_Side":
        tokens = counted(mask, logits)
        # A double softmax takes the probabilities at tau_sl.
        different = taus if taus[0] != taus[1] and not form.double_softmax else taus[:1]
        log_probabilities, _ = likeliest(
            logits, *tokens, different, k, standardise=form.std_norm, shared=form.batch_permutation
        )
        return cls(log_probabilities[0], log_probabilities[-1], tokens)

    def padded(self, width: int, lengths: Tensor) -> "_Side":
        more = (0, 0, 0, width - self.at_sl.shape[1])
        at_sl, at_sd = (torch.nn.functional.pad(x, more, value=-torch.inf) for x in (self.at_sl, self.at_sd))
        return _Side(at_sl, at_sd, self.tokens._replace(lengths=lengths))


def _absolute(student: _Side, teacher: _Side, lengths: Tensor) -> Tensor:
    """HAD of each sequence (B,)."""
    width = min(student.at_sl.shape[1], teacher.at_sl.shape[1])
    difference = (student.at_sl[:, :width].exp() - teacher.at_sl[:, :width].exp()).abs().sum(2)
    return torch.where(before(lengths, width), difference, 0).sum(1)


def _logarithmic(student: _Side, teacher: _Side, lengths: Tensor, form: Form) -> Tensor:
    """SL of each sequence (B,)."""
    width = min(student.at_sl.shape[1], teacher.at_sl.shape[1])
    target, model = teacher.at_sl[:, :width], student.at_sl[:, :width]
    if form.swap_roles:
        target, model = model, target
    weight, log = target.exp(), model
    if form.double_softmax:
        weight, log = weight.softmax(-1), model.exp().log_softmax(-1)
    counts = before(lengths, width)[:, :, None] & (weight > 0)
    return -(torch.where(counts, weight, 0) * torch.where(counts, log, 0)).sum((1, 2))


def _between_sequences(
    student: _Side, teacher: _Side, tau: float, eps: float, grad: str, form: Form, backend: str
) -> Tensor:
    """SD of each sequence (B,)."""
    if form.double_softmax:
        vectors = [(x.at_sl.exp() / tau).softmax(-1) for x in (student, teacher)]
    else:
        vectors = [x.at_sd.exp() for x in (student, teacher)]
    lengths = student.tokens.lengths, teacher.tokens.lengths
    masks = [before(n, x.shape[1]) for n, x in zip(lengths, vectors, strict=True)]
    cost = l1_cost(*vectors, student_mask=masks[0], teacher_mask=masks[1], softmax=False, backend=backend)
    # Rows of the cost are the student's here: columns first is the teacher first.
    return sinkhorn(
        cost, eps=eps, iterations=form.iterations, lengths=lengths, order="columns_first", grad=grad, backend=backend
    ).value


def _form(name: str, **given) -> Form:
    """The form of this name with what is given in place of its own."""
    choice("form", name, tuple(FORMS))
    for field, value in given.items():
        if value is None or field == "iterations":
            continue
        (arguments.factor if field in ("alpha", "sd_scale") else arguments.flag)(field, value)
    return FORMS[name]._replace(**{field: value for field, value in given.items() if value is not None})
