"""The ops on CPU tensors, by the native core.

The core takes raw pointers. Every argument was checked where the user handed it over (kd_kernels/arguments.py); here
the tensors get the layout the core wants, and stay referenced until it returns. The core uses at most
`torch.get_num_threads()` threads and its results do not depend on how many.
"""

from kd_kernels.backends.cpu.memory import KEPT_BYTES, empty_gradient, release_memory, workspace
from kd_kernels.backends.cpu.rows import (
    OUTER_PRODUCT_DTYPES,
    divergence,
    divergence_backward,
    outer_product,
    row_losses,
    scale_,
    slice_gradient,
    slice_statistics,
    slice_sums,
    tail_gradient,
    tail_logits,
)
from kd_kernels.backends.cpu.transport import l1_cost, l1_cost_backward, sinkhorn, sinkhorn_backward, sorted_l1

__all__ = [
    "KEPT_BYTES", "OUTER_PRODUCT_DTYPES", "divergence", "divergence_backward", "empty_gradient", "l1_cost",
    "l1_cost_backward", "outer_product", "release_memory", "row_losses", "scale_", "sinkhorn", "sinkhorn_backward",
    "slice_gradient", "slice_statistics", "slice_sums", "sorted_l1", "tail_gradient", "tail_logits", "workspace",
]  # fmt: skip
