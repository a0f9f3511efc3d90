"""Where the gradient of a chunk of the student's logits goes: into the gradients of a head, or into its place in the
gradient of the logits."""

from types import ModuleType

import torch
from torch import Tensor

from kd_kernels.chunks.products import ProductSum
from kd_kernels.chunks.sides import Projection, Rows
from kd_kernels.reduction import sum_dtype


class HeadGradients:
    """Gradients of hidden states (N, H), weight (V, H) and bias (V,), those that are wanted.

    `once` says that no two chunks share rows, and that none share columns.
    """

    def __init__(
        self,
        side: Projection,
        weight: Tensor,
        bias: Tensor | None,
        wanted: list[bool],
        backend: ModuleType,
        *,
        once: tuple[bool, bool],
    ) -> None:
        def product_sum(like: Tensor, rows: int, once: bool) -> ProductSum:
            return ProductSum(like, rows, side.dtype, backend, once=once)

        self._side = side
        self._hidden = product_sum(side.hidden, len(side.hidden), once[0]) if wanted[0] else None
        self._weight = product_sum(weight, len(side.weight), once[1]) if wanted[1] else None
        self._bias = torch.zeros_like(bias, dtype=sum_dtype(bias.dtype)) if wanted[2] else None
        self._bias_dtype = None if bias is None else bias.dtype
        self._buffer = None

    def target(self, x: Tensor, rows: slice, columns: slice) -> Tensor:
        """Where to write the gradient of x: over it, unless tanh's derivative still needs x."""
        if not self._side.softcap:
            return x
        if self._buffer is None:
            self._buffer = torch.empty_like(x)
        return self._buffer[: len(x), : x.shape[1]]  # later chunks are no larger

    def take(self, gradient: Tensor, x: Tensor, rows: slice, columns: slice) -> None:
        side = self._side
        if side.softcap:
            torch.ops.aten.tanh_backward.grad_input(gradient, x, grad_input=gradient)
        if self._hidden is not None:
            self._hidden.add(gradient, side.weight[columns], rows, gain=side.gain, first=columns.start == 0)
        if self._weight is not None:
            self._weight.add(gradient.t(), side.hidden[rows], columns, gain=side.gain, first=rows.start == 0)
        if self._bias is not None:
            self._bias[columns].add_(gradient.sum(0, dtype=self._bias.dtype), alpha=side.gain)

    def results(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Of hidden states, weight and bias."""
        return (
            None if self._hidden is None else self._hidden.result(),
            None if self._weight is None else self._weight.result(),
            None if self._bias is None else self._bias.to(self._bias_dtype),
        )


class LogitsGradient:
    """The gradient of logits (N, V), of which a side may show some rows and columns."""

    def __init__(self, side: Rows, out: Tensor, columns: int) -> None:
        self._index, self._out = side.index, out
        if side.index is not None:
            out.zero_()
        else:
            out[:, columns:] = 0

    def target(self, x: Tensor, rows: slice, columns: slice) -> Tensor:
        return self._out[rows, columns] if self._index is None else x

    def take(self, gradient: Tensor, x: Tensor, rows: slice, columns: slice) -> None:
        if self._index is not None:
            self._out[:, columns].index_copy_(0, self._index[rows], gradient)

    def results(self) -> tuple[Tensor, None, None]:
        return self._out, None, None
