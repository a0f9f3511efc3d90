"""The ops as CUDA kernels, by the module `kd_kernels._cuda`.

It takes raw pointers and a stream. Every argument was checked where the user handed it over (kd_kernels/arguments.py);
here outputs and workspace are allocated, by PyTorch, so that a call may be captured in a graph. What `select.SUPPORT`
does not list for this backend it does not have.
"""

from kd_kernels.backends.cuda.call import DTYPES
from kd_kernels.backends.cuda.l1_cost import l1_cost, l1_cost_backward
from kd_kernels.backends.cuda.rows import divergence, divergence_backward, row_losses, row_plan, scale_
from kd_kernels.backends.cuda.sinkhorn import sinkhorn, sinkhorn_backward
from kd_kernels.dense_rows import KEPT_BYTES, OUTER_PRODUCT_DTYPES, empty_gradient, workspace

__all__ = [
    "DTYPES", "KEPT_BYTES", "OUTER_PRODUCT_DTYPES", "divergence", "divergence_backward", "empty_gradient", "l1_cost",
    "l1_cost_backward", "row_losses", "row_plan", "scale_", "sinkhorn", "sinkhorn_backward", "workspace",
]  # fmt: skip
