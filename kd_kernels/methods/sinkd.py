"""SinKD: Sinkhorn distance between the distributions of student and teacher."""

from torch import Tensor

from kd_kernels import l1_cost, sinkhorn
from kd_kernels.arguments import is_number, temperatures, vocabulary
from kd_kernels.arguments import reduction as checked_reduction
from kd_kernels.methods import arguments
from kd_kernels.transport.arguments import choice, count, row_mask
from kd_kernels.transport.smoothed_tvd import MAX_EPS, MIN_EPS, smoothed_tvd

FORMS = ("batch", "sequence", "sample")


def sinkd(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperature: float | tuple[float, float] = 2.0,
    eps: float = 0.1,
    iterations: int = 20,
    mask: Tensor | None = None,
    teacher_mask: Tensor | None = None,
    form: str = "batch",
    grad: str = "unrolled",
    reduction: str = "sum",
    vocab: str | int = "strict",
    backend: str = "auto",
) -> Tensor:
    """<P, C>, P the entropic transport plan after the given number of Sinkhorn iterations (Cui et al. 2024).

    With q = softmax(student / T) and p = softmax(teacher / T):

    * form="batch": between all rows, C_ij = sum_v |q_iv - p_jv|, every row of mass 1.
    * form="sequence": the same among the tokens of each sequence.
    * form="sample": within each row, between the classes: C = 1 - I, marginals q and p.

    Rows of P, the student's, are scaled first, and its columns last. Nothing else is multiplied in: the mass is the
    number of rows, and the published code has a factor of 0.001.

    Args:
        student_logits: `[..., V]`, for "sequence" `[..., L, V]`; float32, bfloat16, float16 or float64.
        teacher_logits: likewise. "batch" takes any number of teacher rows, "sequence" any number of tokens.
        temperature: T, or a pair (student's, teacher's).
        eps: strength of the entropy; for "sample" at least 0.005.
        iterations: how many.
        mask: rows that count, bool or integer `[...]`; the others have no mass and are not read. Of both sides, unless
            there is a teacher_mask.
        teacher_mask: of the teacher's rows. "sample" has none.
        form: "batch", "sequence" or "sample".
        grad: "unrolled", "implicit" or "detached", as for `sinkhorn`. "sample", where the cost is constant, has
            "unrolled" alone.
        reduction: "sum" of the problems; "mean", their sum over the number of the student's rows that count; "none":
            0-d for "batch", `[...]` of sequences or rows for the others.
        vocab: as for `l1_cost`.
        backend: "auto", "cpu", "cuda", "triton" or "reference"; "sample" runs in PyTorch on all.

    Returns:
        float32, or float64 for float64 logits.

    Raises:
        ValueError: a shape, range, device or name that does not fit.
        TypeError: a dtype or type that does not fit.
        RuntimeError: a backend that is not available in this installation.
    """
    choice("form", form, FORMS)
    arguments.logits(student_logits, teacher_logits, "[..., L, V]" if form == "sequence" else "[..., V]")
    checked_reduction(reduction)
    student_mask = row_mask("mask", mask, student_logits)
    if form == "sample":
        if teacher_mask is not None:
            raise ValueError("teacher_mask must be None for form='sample': mask is of both sides")
        if grad != "unrolled":
            raise ValueError(f"grad must be 'unrolled' for form='sample', whose cost is constant, got {grad!r}")
        values = _samples(student_logits, teacher_logits, temperature, eps, iterations, student_mask, vocab)
    else:
        if teacher_mask is None and mask is not None and teacher_logits.shape[:-1] != student_logits.shape[:-1]:
            raise ValueError(
                f"teacher_mask must be given where mask has not the shape of the teacher's rows "
                f"{list(teacher_logits.shape[:-1])}, got {list(mask.shape)}"
            )
        teacher_mask = mask if teacher_mask is None else teacher_mask
        masks = student_mask, row_mask("teacher_mask", teacher_mask, teacher_logits)
        if form == "sequence":
            arguments.same_batch(student_logits, teacher_logits, 2)
        else:
            student_logits, teacher_logits = (x.reshape(-1, x.shape[-1]) for x in (student_logits, teacher_logits))
            masks = [None if x is None else x.reshape(-1) for x in masks]
        cost = l1_cost(
            student_logits, teacher_logits, temperature=temperature, student_mask=masks[0], teacher_mask=masks[1],
            vocab=vocab, backend=backend,
        )  # fmt: skip
        a, b = (None if x is None else x.to(cost.dtype) for x in masks)
        values = sinkhorn(cost, a, b, eps=eps, iterations=iterations, grad=grad, backend=backend).value
    if reduction == "none":
        return values
    total = values.sum()
    if reduction == "sum":
        return total
    if student_mask is None:
        return total / max(1, student_logits[..., 0].numel())
    return total / student_mask.sum().clamp(min=1)


def _samples(student, teacher, temperature, eps, iterations, mask, vocab) -> Tensor:
    """The loss of each row, [...]."""
    arguments.same_batch(student, teacher, 1)
    columns = vocabulary(vocab, student.shape[-1], teacher.shape[-1])
    if not is_number(eps):
        raise TypeError(f"eps must be a number, got {type(eps).__name__}")
    if not MIN_EPS <= eps <= MAX_EPS:
        raise ValueError(
            f"eps must be between {MIN_EPS:g} and {MAX_EPS:g} for form='sample', got {eps}; the limit for 0 is "
            "divergence(..., 'tvd')"
        )
    rows = [x[..., :columns].reshape(-1, columns) for x in (student, teacher.detach())]
    mask_of_rows = None if mask is None else mask.reshape(-1)
    values = smoothed_tvd(*rows, mask_of_rows, temperatures(temperature), float(eps), count("iterations", iterations))
    return values.reshape(student.shape[:-1])
