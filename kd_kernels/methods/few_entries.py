"""Logits of a few entries of each row, and which are the largest: for losses that look at no others."""

import torch
from torch import Tensor

from kd_kernels import Head, arguments
from kd_kernels.methods.by_chunk import constant_rows
from kd_kernels.reduction import sum_dtype

# Entries at a time: of logits that are searched, and of rows of a weight that are gathered.
_SEARCHED, _GATHERED = 1 << 25, 1 << 22

# What stands for -inf, so that differences exist: e to this power, over any temperature in use, is 0.
_FORBIDDEN = -1e4


def largest(side: Tensor | Head, k: int, columns: int) -> Tensor:
    """Ids (N, k) of the k largest logits among the first `columns`, in descending order."""
    rows = arguments.rows_of(side)
    count = rows.shape[:-1].numel()
    if isinstance(side, Tensor):
        return side.detach()[..., :columns].topk(k, dim=-1).indices.reshape(count, k)
    logits = constant_rows(side)
    ids = torch.empty(count, k, dtype=torch.int64, device=rows.device)
    step = max(1, _SEARCHED // side.weight.shape[0])
    for start in range(0, count, step):
        part = slice(start, start + step)
        ids[part] = logits(part)[:, :columns].topk(k, dim=1).indices
    return ids


def largest_of_both(
    student: Tensor | Head, teacher: Tensor | Head, k: int, columns: int, counted: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Logits (N, 2 k) of the student, differentiable, and of the teacher, each at the teacher's k largest entries and
    then at the student's; 0 in rows that do not count."""
    ids = torch.cat([largest(teacher, k, columns), largest(student, k, columns)], 1)
    with torch.no_grad():
        of_teacher = logits_at(teacher, ids, counted)
    return logits_at(student, ids, counted), of_teacher


def logits_at(side: Tensor | Head, ids: Tensor, counted: Tensor | None) -> Tensor:
    """Logits (N, K) of entries (N, K), differentiable, float32 at least; 0 in rows that do not count, bool (N,)."""
    if isinstance(side, Tensor):
        shape = side.shape[:-1]
        values = side.gather(-1, ids.reshape(*shape, ids.shape[1])).reshape(ids.shape).to(sum_dtype(side.dtype))
    else:
        hidden = side.hidden.reshape(-1, side.hidden.shape[-1])
        if counted is not None:  # NaN would reach the gradient of the weight
            hidden = torch.where(counted[:, None], hidden, 0)
        values = _Products.apply(hidden, side.weight, ids)
        if side.bias is not None:
            values = values + side.bias.to(values.dtype)[ids]
        values = values * side.scale
        if side.softcap is not None:
            values = (values / side.softcap).tanh() * side.softcap
    if counted is not None:
        values = torch.where(counted[:, None], values, 0)
    return values.clamp(min=_FORBIDDEN)


class _Products(torch.autograd.Function):
    """hidden (N, H), weight (V, H), ids (N, K) -> hidden . weight[ids] (N, K), gathering a few rows at a time."""

    @staticmethod
    def forward(ctx, hidden, weight, ids):
        ctx.save_for_backward(hidden, weight, ids)
        real = sum_dtype(hidden.dtype)
        result = torch.empty(ids.shape, dtype=real, device=ids.device)
        for part in _parts(hidden, ids):
            result[part] = torch.bmm(weight[ids[part]].to(real), hidden[part].to(real).unsqueeze(2)).squeeze(2)
        return result

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, upstream):
        hidden, weight, ids = ctx.saved_tensors
        of_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        of_weight = torch.zeros_like(weight, dtype=upstream.dtype) if ctx.needs_input_grad[1] else None
        for part in _parts(hidden, ids):
            u, at = upstream[part], ids[part]
            if of_hidden is not None:
                of_hidden[part] = torch.bmm(u.unsqueeze(1), weight[at].to(u.dtype)).squeeze(1).to(hidden.dtype)
            if of_weight is not None:
                terms = u.unsqueeze(2) * hidden[part].to(u.dtype).unsqueeze(1)
                of_weight.index_put_((at,), terms, accumulate=True)  # in a fixed order, unlike index_add_ on GPUs
        return of_hidden, None if of_weight is None else of_weight.to(weight.dtype), None


def _parts(hidden: Tensor, ids: Tensor) -> list[slice]:
    step = max(1, _GATHERED // (ids.shape[1] * hidden.shape[1]))
    return [slice(start, start + step) for start in range(0, len(ids), step)]
