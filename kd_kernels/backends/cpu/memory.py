"""Memory for gradients and for logits that are done with soon."""

import torch
from torch import Tensor

from kd_kernels import _core

# Gradients and workspaces from this size on live in memory that is kept for the next one
# (csrc/cpu/gradient_memory.h). Below it the allocator keeps memory itself.
KEPT_BYTES = 32 << 20


def empty_gradient(student: Tensor) -> Tensor:
    """Memory for the gradient of logits (N, V), contiguous."""
    size = student.numel() * student.itemsize
    if size < KEPT_BYTES:
        return torch.empty(student.shape, dtype=student.dtype)
    return workspace(size, student.device).view(student.dtype).view(student.shape)


def workspace(size: int, device: torch.device) -> Tensor:
    """Memory for logits or gradients of them that are done with soon: bytes [size]."""
    if size < KEPT_BYTES:
        return torch.empty(size, dtype=torch.uint8, device=device)
    return torch.frombuffer(_core.GradientMemory(size), dtype=torch.uint8)


def release_memory() -> None:
    """Gives the memory that is kept for the next large gradient back to the system."""
    _core.release_pages()
