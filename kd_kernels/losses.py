"""The losses: `kd_kernels.divergence`."""

import dataclasses

import torch
from torch import Tensor

from kd_kernels import arguments
from kd_kernels.autograd import ChunksLoss, ChunkTensors, Reduced, RowByRow, RowsLoss, Spec, Tensors
from kd_kernels.backends import reference, select
from kd_kernels.divergences import Divergence, resolve
from kd_kernels.head import Head
from kd_kernels.reduction import count, reduce, sum_dtype
from kd_kernels.stats import Stats
from kd_kernels.top_k import Entries, TopK


def divergence(
    student: Tensor | Head,
    teacher: Tensor | Head | TopK,
    kind: str | Divergence = "forward_kl",
    *,
    temperature: float | tuple[float, float] = 1.0,
    scale_t2: bool = False,
    mask: Tensor | None = None,
    labels: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    normalizer: float | Tensor | None = None,
    vocab: str | int = "strict",
    return_stats: bool = False,
    teacher_grad: bool = False,
    backend: str = "auto",
    chunk_tokens: int | None = None,
    memory_budget: int | None = None,
    **params: float,
) -> Tensor | tuple[Tensor, Stats]:
    """Divergence between the next-token distributions of a teacher and a student, with its gradient.

    With p = softmax(teacher / T) and q = softmax(student / T), each row of logits gives D(p, q). A reduced loss
    computes its gradient along with its value and keeps nothing else. From two logits tensors, the gradient is the only
    other tensor of their size; from a `Head` on either side, logits exist only a chunk at a time.

    Nothing is added that was not asked for: no shift of labels, no cross-entropy term, no T^2.

    Args:
        student: logits `[..., V]`, float32, bfloat16, float16 or float64, or a `Head`. Gradients go here: to logits, or
            to hidden states, weight and bias.
        teacher: logits `[..., V]` of the same rows, a `Head`, or the likeliest entries of each row, a `TopK`.
        kind: a name of the table in the documentation, with its parameters as keywords (`kind="jsd", beta=0.1`), or an
            object that carries them (`kd_kernels.JSD(0.1)`).
        temperature: T, or a pair (student's, teacher's). A `TopK` holds log-probabilities at the teacher's.
        scale_t2: multiply by T^2 (by the product of the two temperatures), which keeps the size of gradients.
        mask: rows that count, `[...]`: bool, or weights. A row of weight 0 is not read; it may hold NaN.
        labels: rows count where labels `[...]` differ from `ignore_index`; they are used for nothing else. With `mask`
            both must agree.
        reduction: "mean" is the weighted sum over the number of rows that count, "sum" the weighted sum, "none" the
            weighted losses of the rows, `[...]`.
        normalizer: for "mean", a number or 0-d tensor in place of the count, such as the number of target tokens of all
            micro-batches.
        vocab: "strict" wants equal vocabularies; "common" compares the first min(V, V') columns, a number n the first
            n, each side renormalised over them. Other columns get gradient zero.
        return_stats: return also the `Stats` of the rows.
        teacher_grad: let gradients flow to the teacher too; backend "reference" only.
        backend: "auto", "cpu", "cuda", "triton" or "reference". "auto" takes the kernels made for the tensors' device.
        chunk_tokens: rows of a `Head` to project at a time; by default what the shapes suggest.
        memory_budget: bytes of memory, gradients included, that a loss with a `Head` may take beside its arguments;
            decides between chunks of rows and of the vocabulary, and their size.
        **params: parameters of the kind.

    Returns:
        The loss: 0-d, or `[...]` for reduction "none"; float32, or float64 for float64 logits. With `return_stats` a
        pair (loss, Stats). A batch without rows that count gives 0, connected to the graph.

    Raises:
        ValueError: a shape, range, device or name that does not fit, or a memory budget that nothing fits.
        TypeError: a dtype or type that does not fit.
        RuntimeError: a backend that is not available in this installation.
    """
    dense = isinstance(student, Tensor) and isinstance(teacher, Tensor)
    if dense:
        arguments.logits_pair(student, teacher)
    else:
        arguments.sides(student, teacher)
        arguments.chunks(chunk_tokens, memory_budget)
        student, teacher = in_dtype_of_products(student), in_dtype_of_products(teacher)
    spec_kind = resolve(kind, params)
    rows, teacher_rows = arguments.rows_of(student), arguments.rows_of(teacher)
    columns = arguments.vocabulary(vocab, *arguments.vocabularies(student, teacher))
    t_student, t_teacher = arguments.temperatures(temperature)
    scale = t_student * t_teacher if scale_t2 else 1.0
    arguments.reduction(reduction)
    divisor = arguments.normalizer(normalizer, reduction, rows)
    weight = arguments.row_weights(mask, labels, ignore_index, rows, sum_dtype(rows.dtype))
    if backend == "auto" and (teacher_grad or spec_kind.kernel is None):
        backend = "reference"
    # The log-probabilities of a sparse teacher may have any dtype: they join the sums.
    sparse = isinstance(teacher, TopK)
    dtypes = (rows.dtype, rows.dtype if sparse else teacher_rows.dtype)
    groups = ("rows",) if dense else select.SPARSE_TEACHER if sparse else select.HEADS
    chosen = select.choose(backend, rows.device, dtypes, groups)
    if chosen != "reference":
        if teacher_grad:
            raise ValueError(f"teacher_grad=True needs backend='reference', got {backend!r}")
        if spec_kind.kernel is None:
            raise ValueError(f"{spec_kind!r} has no kernel; it needs backend='reference', got {backend!r}")

    if chosen == "reference":
        loss, stats = _by_reference(
            student, teacher, weight, divisor, spec_kind, (t_student, t_teacher), scale, columns, reduction,
            return_stats, teacher_grad,
        )  # fmt: skip
    else:
        spec, of_op, normaliser = (
            Spec(*spec_kind.kernel, (1 / t_student, 1 / t_teacher), scale, columns),
            reduction,
            divisor,
        )
        if divisor is not None:
            of_op = "sum"
            if isinstance(divisor, float):  # a constant: part of the scale
                spec, normaliser = spec._replace(scale=spec.scale / divisor), None
        if dense:
            loss, stats = _by_kernel(student, teacher, weight, normaliser, spec, of_op, return_stats, chosen)
        else:
            chunks = (chunk_tokens, memory_budget)
            loss, stats = _in_chunks(student, teacher, weight, normaliser, spec, of_op, return_stats, chunks, chosen)
    shape = rows.shape[:-1]
    if reduction == "none":
        loss = loss.reshape(shape)
    if not return_stats:
        return loss
    n_valid = count(weight, stats[0])
    if reduction == "none":
        return loss, Stats(n_valid, *(x.reshape(shape) for x in stats))
    return loss, Stats(n_valid, *(reduce(x, weight, reduction, divisor) for x in stats))


def entropy(student: Tensor | Head, columns: int, *, mask: Tensor | None, reduction: str, **options: object) -> Tensor:
    """-sum_v q_v log q_v over the first `columns` entries, in nats, with its gradient.

    Args:
        student: logits `[..., V]` or a `Head`.
        columns: entries that count.
        mask: as for `divergence`.
        reduction: as for `divergence`.
        **options: further keywords of `divergence`, but for `vocab` and those of the kind.
    """
    rows = arguments.rows_of(student)
    flat = rows.new_zeros(columns).expand(*rows.shape[:-1], columns)
    # H(q) = log V - KL(q, uniform) has the gradient; the value without the cancellation is among the statistics.
    from_flat, stats = divergence(
        student,
        flat,
        "reverse_kl",
        mask=mask,
        reduction=reduction,
        return_stats=True,
        **(options | {"vocab": "common"}),
    )
    value = stats.student_entropy
    if reduction == "none" and mask is not None:  # unlike losses, statistics of rows are not weighted
        value = value * mask
    return value + (from_flat.detach() - from_flat)


def _by_kernel(student, teacher, weight, normalizer, spec, reduction, with_entropy, backend) -> tuple[Tensor, Tensor]:
    """Logits x logits."""
    student, teacher = _flat(student), _flat(teacher)
    if teacher.requires_grad:
        teacher = teacher.detach()
    wanted = student.requires_grad and torch.is_grad_enabled()
    loss = RowsLoss(spec, reduction, with_entropy, backend)
    return _differentiable(loss, (student, teacher, weight, normalizer), wanted)


def _in_chunks(
    student, teacher, weight, normalizer, spec, reduction, with_stats, chunks, backend
) -> tuple[Tensor, Tensor]:
    """Every other pair."""
    of_student, student_transform = _tensors(student)
    of_teacher, teacher_transform = _tensors(teacher)
    of_teacher = [x if x is None else x.detach() for x in of_teacher]
    ids, tail = (_flat(teacher.ids), teacher.tail) if isinstance(teacher, TopK) else (None, "")
    tensors = ChunkTensors(*of_student, *of_teacher, ids, weight, normalizer)
    wanted = [x is not None and x.requires_grad and torch.is_grad_enabled() for x in of_student]
    loss = ChunksLoss(
        student_transform, teacher_transform, tail, spec, reduction, wanted, with_stats, torch.compiler.is_compiling(),
        *chunks, backend,
    )  # fmt: skip
    return _differentiable(loss, tensors, any(wanted))


def _differentiable(loss: RowsLoss | ChunksLoss, tensors: Tensors, wanted: bool) -> tuple[Tensor, Tensor]:
    """The loss and its statistics."""
    if not wanted:  # the value costs less without its gradient
        value, _, stats = loss.values(tensors)
        return value, stats
    return (RowByRow if loss.reduction == "none" else Reduced).apply(loss, *tensors)


def _by_reference(
    student, teacher, weight, normalizer, kind, temperatures, scale, columns, reduction, with_stats, teacher_grad
) -> tuple[Tensor, Tensor | None]:
    student = _logits(student, weight)
    if isinstance(teacher, TopK):
        real = sum_dtype(student.dtype)
        listed = Entries.of(_flat(teacher.ids), _flat(teacher.logprobs), teacher.tail, columns, real)
        if not teacher_grad:
            listed = listed.detach()
        return reference.top_k_divergence(
            student, listed, weight, normalizer, kind, temperatures[0], scale, columns, reduction, with_stats
        )
    teacher = _logits(teacher, weight)
    return reference.divergence(
        student, teacher if teacher_grad else teacher.detach(), weight, normalizer, kind, temperatures, scale, columns,
        reduction, with_stats,
    )  # fmt: skip


def _logits(side: Tensor | Head, weight: Tensor | None) -> Tensor:
    """All of them, (N, V). Of a head, those of rows that do not count are not from what these hold."""
    if isinstance(side, Tensor):
        return _flat(side)
    hidden = _flat(side.hidden)
    if weight is not None:  # NaN would reach the gradient of the weight
        hidden = torch.where((weight != 0).unsqueeze(1), hidden, 0)
    return dataclasses.replace(side, hidden=hidden).logits()


def _tensors(side: Tensor | Head | TopK) -> tuple[list[Tensor | None], list[float]]:
    """Rows, weight and bias of a side; scale and softcap of a head."""
    if isinstance(side, Head):
        return [_flat(side.hidden), side.weight, side.bias], [side.scale, side.softcap or 0.0]
    return [_flat(arguments.rows_of(side)), None, None], []


def _flat(x: Tensor) -> Tensor:
    return x if x.dim() == 2 else x.reshape(-1, x.shape[-1])


def in_dtype_of_products(side: Tensor | Head | TopK) -> Tensor | Head | TopK:
    """A head as autocast wants it: it casts the input of a product, and the weight goes with the input."""
    if not isinstance(side, Head) or side.hidden.dtype == torch.float64:
        return side
    device = side.hidden.device.type
    if not torch.is_autocast_enabled(device):
        return side
    return dataclasses.replace(side, hidden=side.hidden.to(torch.get_autocast_dtype(device)))
