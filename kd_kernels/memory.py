"""Memory this library keeps between calls."""

from kd_kernels.backends import select


def release_memory() -> None:
    """Gives the memory kept for the next large gradient on the CPU back to the system.

    A gradient of 32 MiB or more is written into memory that, once no tensor uses it, is kept for the next such
    gradient: one block, of the size a training step needs at its peak anyway. Fresh pages would cost half as much time
    again as the loss. On GPUs PyTorch's allocator does the same for all tensors, and this does nothing.
    """
    if select.unavailable("cpu") is None:
        select.implementation("cpu").release_memory()
