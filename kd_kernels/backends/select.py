"""Which backend runs: one table of what each supports, and the reason where one cannot run here."""

import importlib
import importlib.util
from dataclasses import dataclass
from functools import cache
from types import ModuleType

import torch

_UP_TO_SINGLE = frozenset({torch.float32, torch.bfloat16, torch.float16})
_UP_TO_DOUBLE = _UP_TO_SINGLE | {torch.float64}


@dataclass(frozen=True)
class Support:
    """Device types (None: all) and dtypes of the logits."""

    devices: frozenset[str] | None
    dtypes: frozenset[torch.dtype]


SUPPORT = {
    "cpu": Support(frozenset({"cpu"}), _UP_TO_DOUBLE),
    "triton": Support(frozenset({"cuda", "xpu"}), _UP_TO_SINGLE),
    "reference": Support(None, _UP_TO_DOUBLE),
}
BACKENDS = ("auto", *SUPPORT)

# What `auto` takes, by device type; "reference" for the others and for dtypes that one does not support.
KERNELS_FOR = {"cpu": "cpu", "cuda": "triton", "xpu": "triton"}


def _find_missing() -> dict[str, str]:
    missing = {}
    if importlib.util.find_spec("kd_kernels._core") is None:
        missing["cpu"] = "the native core was not built (install from source with a C++ compiler, or a wheel)"
    if importlib.util.find_spec("triton") is None:
        missing["triton"] = "triton is not installed"
    return missing


_MISSING = _find_missing()  # at import, so that a compiler which traces a call finds a constant


def unavailable(backend: str) -> str | None:
    """Why the backend cannot run in this installation; None where it can."""
    return _MISSING.get(backend)


def supports(backend: str, device: str, dtypes: tuple[torch.dtype, torch.dtype]) -> bool:
    support = SUPPORT[backend]
    if not (dtypes[0] in support.dtypes and dtypes[1] in support.dtypes):
        return False
    if support.devices is None or device in support.devices:
        return True
    return backend == "triton" and device == "cpu" and _interpreting()


def choose(backend: str, device: str, dtypes: tuple[torch.dtype, torch.dtype]) -> str:
    """The backend to run for logits of these dtypes (student's, teacher's) on this device type.

    Raises:
        ValueError: an unknown backend, or one that does not support the tensors.
        RuntimeError: a backend, or for `auto` the one meant for the device, that is not available here.
    """
    if backend == "auto":
        backend = KERNELS_FOR.get(device, "reference")
        if not supports(backend, device, dtypes):
            backend = "reference"
    elif backend not in SUPPORT:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {backend!r}")
    elif not supports(backend, device, dtypes):
        names = " and ".join(str(d).removeprefix("torch.") for d in dict.fromkeys(dtypes))
        raise ValueError(f"backend {backend!r} does not support {names} logits on {device}")
    reason = unavailable(backend)
    if reason is not None:
        raise RuntimeError(f"backend {backend!r} is not available: {reason}. backend='reference' runs everywhere.")
    return backend


@cache
def implementation(backend: str) -> ModuleType:
    """The module that implements the ops, imported on first use."""
    return importlib.import_module(f"kd_kernels.backends.{backend}")


def _interpreting() -> bool:
    """Whether Triton's kernels run in its interpreter, that is, on CPU tensors."""
    if unavailable("triton"):
        return False
    from triton import knobs

    return knobs.runtime.interpret
