"""The ops, `torch.ops.kd_kernels.*`: schemas, fakes and implementations. Nothing else knows torch.library.

Each op runs on the backend its last argument names; those that name none are PyTorch everywhere. They are opaque to the
compiler, allocate their own outputs, never synchronise with the device and carry no autograd of their own:
`kd_kernels.autograd` and `kd_kernels.transport` differentiate.
"""

from kd_kernels.ops.entries import likeliest, likeliest_backward
from kd_kernels.ops.rows import chunked_divergence, divergence, divergence_backward
from kd_kernels.ops.smoothed_tvd import smoothed_tvd
from kd_kernels.ops.transport import (
    l1_cost,
    l1_cost_backward,
    sinkhorn,
    sinkhorn_adjoint,
    sinkhorn_backward,
    sorted_l1,
)

__all__ = [
    "chunked_divergence", "divergence", "divergence_backward", "l1_cost", "l1_cost_backward", "likeliest",
    "likeliest_backward", "sinkhorn", "sinkhorn_adjoint", "sinkhorn_backward", "smoothed_tvd", "sorted_l1",
]  # fmt: skip
