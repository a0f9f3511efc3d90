"""Losses of rows that are no op: any function of a chunk of the student's logits, in PyTorch and in ops.

Only a chunk of logits, and of what is made of them, exists at a time. In backward everything is computed again.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from kd_kernels import Head, arguments
from kd_kernels.losses import in_dtype_of_products
from kd_kernels.reduction import sum_dtype

# Entries of a chunk: 64 MB of bfloat16, enough rows for fast products.
_ENTRIES = 1 << 25

Rows = slice | Tensor  # an index (C,) where some do not count
Losses = Callable[[Tensor, Rows], Tensor]


@torch.compiler.disable  # which rows count is looked up, and backward runs autograd itself
def losses_by_chunk(
    losses: Losses, student: Tensor | Head, counted: Tensor | None, chunk_tokens: int | None = None
) -> Tensor:
    """Losses (N,) of the student's N rows, differentiable; 0 of those that do not count, which are not read.

    Args:
        losses: logits (C, V) of some rows and which rows they are -> their losses (C,). It must give the same losses
            when it is called again, and be differentiable in the logits alone.
        student: logits or a `Head`.
        counted: rows that count, bool (N,); None for all. The host looks which they are.
        chunk_tokens: rows in a chunk.
    """
    arguments.chunks(chunk_tokens, None)
    student = in_dtype_of_products(student)
    size = chunk_tokens or max(1, _ENTRIES // arguments.vocabularies(student, student)[0])
    index = None if counted is None or bool(counted.all()) else counted.nonzero().squeeze(1)
    of_head = (student.weight, student.bias) if isinstance(student, Head) else (None, None)
    return _ByChunk.apply(_Plan(losses, student, size, index), _flat(student), *of_head)


def constant_rows(side: Tensor | Head) -> Callable[[Rows], Tensor]:
    """Logits (C, V) of some rows of a side, without a gradient."""
    side = in_dtype_of_products(side)
    flat = _flat(side).detach()
    if isinstance(side, Head):
        weight, bias = _cast((side.weight, side.bias), flat.dtype)
        side = dataclasses.replace(side, weight=weight.detach(), bias=bias)

    def logits(rows: Rows) -> Tensor:
        with torch.no_grad():
            return _logits(side, flat[rows])

    return logits


def _flat(side: Tensor | Head) -> Tensor:
    rows = arguments.rows_of(side)
    return rows.reshape(-1, rows.shape[-1])


def _cast(tensors: Sequence[Tensor | None], dtype: torch.dtype) -> list[Tensor | None]:
    """Once, that is, and not for every chunk."""
    return [x if x is None else x.to(dtype) for x in tensors]


def _logits(side: Tensor | Head, rows: Tensor) -> Tensor:
    return dataclasses.replace(side, hidden=rows).logits() if isinstance(side, Head) else rows


@dataclasses.dataclass(frozen=True, eq=False)
class _Plan:
    losses: Losses
    student: Tensor | Head
    size: int
    index: Tensor | None  # of the rows that count; None: all

    def chunks(self, n: int) -> Iterator[Rows]:
        count = n if self.index is None else len(self.index)
        for start in range(0, count, self.size):
            part = slice(start, min(start + self.size, count))
            yield part if self.index is None else self.index[part]

    def run(self, chunk: Rows, rows: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        side = self.student
        if isinstance(side, Head):
            side = dataclasses.replace(side, weight=weight, bias=bias)
        return self.losses(_logits(side, rows), chunk)


class _ByChunk(torch.autograd.Function):
    @staticmethod
    def forward(ctx, plan, rows, weight, bias):
        ctx.plan = plan
        ctx.save_for_backward(rows, weight, bias)
        weight, bias = _cast((weight, bias), rows.dtype)
        result = torch.zeros(len(rows), dtype=sum_dtype(rows.dtype), device=rows.device)
        for chunk in plan.chunks(len(rows)):
            result[chunk] = plan.run(chunk, rows[chunk], weight, bias)
        return result

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, upstream):
        rows, *of_head = ctx.saved_tensors
        wanted = ctx.needs_input_grad[1:]
        of_rows = torch.zeros_like(rows, memory_format=torch.contiguous_format) if wanted[0] else None
        sums = [
            torch.zeros_like(x, dtype=sum_dtype(x.dtype)) if w else None
            for x, w in zip(of_head, wanted[1:], strict=True)
        ]
        cast = _cast(of_head, rows.dtype)
        for chunk in ctx.plan.chunks(len(rows)):
            leaves = [
                None if x is None else x.detach().requires_grad_(w)
                for x, w in zip((rows[chunk], *cast), wanted, strict=True)
            ]
            with torch.enable_grad():
                losses = ctx.plan.run(chunk, *leaves)
            losses.backward(upstream[chunk])
            if of_rows is not None:
                of_rows[chunk] = leaves[0].grad
            for total, leaf in zip(sums, leaves[1:], strict=True):
                if total is not None:
                    total += leaf.grad
        return None, of_rows, *(s if s is None else s.to(x.dtype) for s, x in zip(sums, of_head, strict=True))
