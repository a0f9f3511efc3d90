"""What the core is told of a tensor."""

import torch
from torch import Tensor

from kd_kernels import _core

DTYPES = {getattr(torch, name): code for name, code in _core.DTYPES.items()}


def address(x: Tensor | None) -> int:
    return 0 if x is None else x.data_ptr()


def as_real(dtype: torch.dtype, x: Tensor | None) -> Tensor | None:
    return None if x is None else x.to(dtype).contiguous()
