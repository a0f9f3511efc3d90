"""What every call of `kd_kernels._cuda` is told of its tensors."""

import torch
from torch import Tensor

from kd_kernels import _cuda

DTYPES = {getattr(torch, name): code for name, code in _cuda.DTYPES.items()}


def address(x: Tensor | None) -> int:
    """0 for None. The caller holds the tensor until the call returns; then the order of the stream protects it."""
    return 0 if x is None else x.data_ptr()


def where(x: Tensor) -> tuple[int, int]:
    """Index of the tensor's device, and the stream that is current for it: asked for at each call, never kept."""
    return x.get_device(), torch.cuda.current_stream(x.device).cuda_stream
