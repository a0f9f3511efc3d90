"""Peak memory of a call beyond what was allocated before it."""

import ctypes
import gc
import re
from collections.abc import Callable
from pathlib import Path

import torch

from kd_kernels.memory import release_memory

# Memory comes in pages of up to 2 MiB (the kernels ask for such) and small blocks may be reused ones.
RESOLUTION = 2 << 20

_STATUS = Path("/proc/self/status")
_MEMORY = Path("/proc/meminfo")
_CLEAR_REFS = Path("/proc/self/clear_refs")
_RESET_PEAK = "5"  # proc(5)


def extra_peak_bytes(call: Callable[[], object], device: str) -> int | None:
    """Bytes at the peak of `call` above those before it; None where the system does not tell.

    On a GPU from PyTorch's allocator. On the CPU from the peak resident set, which Linux can reset: to a precision of
    RESOLUTION, whatever part of the process allocates. Caches and workspaces are not meant; call it once before.
    """
    gc.collect()
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    try:
        release_memory()  # what this library or the allocator keeps would be reused unseen
        ctypes.CDLL(None).malloc_trim(0)
        _CLEAR_REFS.write_text(_RESET_PEAK)
    except (OSError, AttributeError):
        return None
    before = _peak_resident_bytes()
    call()
    return _peak_resident_bytes() - before


def shortage(required: int, device: str) -> str | None:
    """Why a call that takes `required` bytes would not fit into the memory that is free now; None where it does, or
    where the system does not tell."""
    available = _available_bytes(device)
    if available is None or required <= available:
        return None
    return f"may need {required / 1e9:.1f} GB of memory, {available / 1e9:.1f} GB are free"


def _available_bytes(device: str) -> int | None:
    if torch.device(device).type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    try:
        return 1024 * int(re.search(r"MemAvailable:\s+(\d+) kB", _MEMORY.read_text())[1])
    except (OSError, TypeError):  # not Linux
        return None


def _peak_resident_bytes() -> int:
    return 1024 * int(re.search(r"VmHWM:\s+(\d+) kB", _STATUS.read_text())[1])
