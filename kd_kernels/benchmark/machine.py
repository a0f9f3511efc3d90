"""Where the numbers were taken."""

import importlib.metadata
import os
import platform
import re
import subprocess
from pathlib import Path

import torch

import kd_kernels
from kd_kernels.backends import select


def describe(device: str) -> dict[str, str | int | float | None]:
    """Hardware, versions, and how busy the machine is; None for what is not there."""
    return {
        "cpu": _cpu(),
        "simd": None if select.unavailable("cpu") else _simd(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name(device) if torch.device(device).type == "cuda" else None,
        **_gpu(device),
        "cuda": torch.version.cuda,
        "cuda_kernels": None if select.unavailable("cuda") else _cuda_kernels(),
        "load_average": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "platform": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": _version("triton"),
        "kd_kernels": kd_kernels.__version__,
        "liger_kernel": _version("liger_kernel"),
        "trl": _version("trl"),
        "pot": _version("POT"),
    }


def commit() -> str | None:
    """Git commit of the package where it runs from a checkout, with "-dirty" where tracked files were changed."""
    root = Path(kd_kernels.__file__).parents[1]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _cpu() -> str:
    try:
        return re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)[1]
    except (OSError, TypeError):  # not Linux, or an architecture that has no such line
        return platform.processor() or platform.machine()


def _gpu(device: str) -> dict[str, str | int | None]:
    """What decides the speed of a GPU, and its driver; empty for a CPU."""
    if torch.device(device).type != "cuda":
        return {}
    properties = torch.cuda.get_device_properties(device)
    return {
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "l2_bytes": properties.L2_cache_size,
        "memory_bytes": properties.total_memory,
        "driver": _driver(),
    }


def _driver() -> str | None:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        return None


def _cuda_kernels() -> str:
    """What the CUDA kernels were built for, and with."""
    from kd_kernels import _cuda

    return f"{_cuda.ARCHITECTURES}; runtime {_cuda.RUNTIME_VERSION // 1000}.{_cuda.RUNTIME_VERSION % 1000 // 10}"


def _simd() -> str:
    from kd_kernels import _core

    return _core.simd().name


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
