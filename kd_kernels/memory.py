"""Memory this library keeps between calls."""

from kd_kernels.backends import select


def release_memory() -> None:
    """Gives the memory kept for the next large gradient, or chunks of logits, on the CPU back to the system.

    A gradient of logits of 32 MiB or more, and the logits of a `Head` in chunks as large, are written into memory that,
    once no tensor uses it, is kept for the next: one block, of the size a training step needs at its peak anyway.
    Fresh pages would cost half as much time again as the loss of logits. On GPUs PyTorch's allocator does the same for
    all tensors, and this does nothing.
    """
    if select.unavailable("cpu") is None:
        select.implementation("cpu").release_memory()
