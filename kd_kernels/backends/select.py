"""Which backend runs: one table of what each supports, and the reason where one cannot run here."""

import importlib
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from types import ModuleType

import torch

_UP_TO_SINGLE = frozenset({torch.float32, torch.bfloat16, torch.float16})
_UP_TO_DOUBLE = _UP_TO_SINGLE | {torch.float64}

# What a backend computes, in groups that it has as a whole or lacks, and the functions of its module for each.
GROUPS = {
    "rows": (
        "divergence", "divergence_backward", "row_losses", "scale_", "empty_gradient", "workspace", "KEPT_BYTES",
        "OUTER_PRODUCT_DTYPES",
    ),
    "slices": ("slice_statistics", "slice_sums", "slice_gradient"),  # rows that come in slices of the vocabulary
    "tails": ("tail_logits", "tail_gradient"),  # what a sparse teacher does not list
    "sinkhorn": ("sinkhorn", "sinkhorn_backward"),
    "l1_cost": ("l1_cost", "l1_cost_backward"),
    "sorted_l1": ("sorted_l1",),
}  # fmt: skip

# The groups an op over chunks may call for: the first decides which backend `auto` takes.
HEADS = ("rows", "slices")
SPARSE_TEACHER = ("tails", "rows", "slices")


@dataclass(frozen=True)
class Support:
    """What a backend runs on.

    Attributes:
        devices: types of devices, None: all.
        dtypes: of the logits.
        groups: of GROUPS.
        mixed: the two sides may have different dtypes.
        capability: the least compute capability of a CUDA device.
        completed_by: the backend whose functions an op over chunks takes for the groups that this one lacks.
    """

    devices: frozenset[str] | None
    dtypes: frozenset[torch.dtype]
    groups: frozenset[str] = frozenset(GROUPS)
    mixed: bool = True
    capability: tuple[int, int] = (0, 0)
    completed_by: str | None = None


SUPPORT = {
    "cpu": Support(frozenset({"cpu"}), _UP_TO_DOUBLE),
    "cuda": Support(
        frozenset({"cuda"}), _UP_TO_SINGLE, frozenset({"rows", "sinkhorn", "l1_cost"}), mixed=False, capability=(8, 0),
        completed_by="triton",
    ),
    "triton": Support(frozenset({"cuda", "xpu"}), _UP_TO_SINGLE),
    "reference": Support(None, _UP_TO_DOUBLE),
}  # fmt: skip
BACKENDS = ("auto", *SUPPORT)

# What `auto` takes, by device type: the first that was built here and supports the tensors. The last of them belongs to
# every installation. "reference" for other devices, and for dtypes that the last does not support.
KERNELS_FOR = {"cpu": ("cpu",), "cuda": ("cuda", "triton"), "xpu": ("triton",)}


def _find_missing() -> dict[str, str]:
    missing = {}
    if importlib.util.find_spec("kd_kernels._core") is None:
        missing["cpu"] = "the native core was not built (install from source with a C++ compiler, or a wheel)"
    if importlib.util.find_spec("kd_kernels._cuda") is None:
        missing["cuda"] = "the CUDA kernels were not built (they need nvcc 12.8 or newer at build time)"
    elif torch.version.hip is not None:
        missing["cuda"] = "this PyTorch is made for AMD GPUs"
    if importlib.util.find_spec("triton") is None:
        missing["triton"] = "triton is not installed"
    return missing


_MISSING = _find_missing()  # at import, so that a compiler which traces a call finds a constant


def unavailable(backend: str) -> str | None:
    """Why the backend cannot run in this installation; None where it can."""
    return _MISSING.get(backend)


def supports(
    backend: str, device: torch.device, dtypes: tuple[torch.dtype, torch.dtype], groups: Sequence[str] = ()
) -> bool:
    """Whether the table has the backend for logits of these dtypes on this device, with these groups of functions."""
    return _objection(backend, device, dtypes, groups) is None


def choose(
    backend: str, device: torch.device, dtypes: tuple[torch.dtype, torch.dtype], groups: Sequence[str] = ("rows",)
) -> str:
    """The backend to run for logits of these dtypes (student's, teacher's) on this device.

    Args:
        backend: of BACKENDS. One that is named must have all groups.
        device: of the logits.
        dtypes: of the logits.
        groups: of GROUPS, what the op may call for. `auto` takes a backend for the first; others it may lack if
            another completes it.

    Raises:
        ValueError: an unknown backend, or one that does not support the tensors.
        RuntimeError: a backend, or for `auto` the one meant for the device, that is not available here.
    """
    if backend == "auto":
        backend = _automatic(device, dtypes, groups)
    elif backend not in SUPPORT:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {backend!r}")
    else:
        objection = _objection(backend, device, dtypes, groups)
        if objection is not None:
            raise ValueError(f"backend {backend!r} does not support {objection}")
    support = SUPPORT[backend]
    completed = any(group not in support.groups for group in groups)
    for name in (backend, support.completed_by) if completed else (backend,):
        reason = unavailable(name)
        if reason is not None:
            raise RuntimeError(f"backend {name!r} is not available: {reason}. backend='reference' runs everywhere.")
    return backend


@cache
def implementation(backend: str) -> "ModuleType | _Completed":
    """The functions of GROUPS: the module of the backend, imported on first use, completed where it lacks groups."""
    module = importlib.import_module(f"kd_kernels.backends.{backend}")
    support = SUPPORT[backend]
    if support.completed_by is None:
        return module
    lacking = frozenset(name for group, names in GROUPS.items() if group not in support.groups for name in names)
    return _Completed(module, lacking, support.completed_by)


class _Completed:
    """A backend, with the functions it lacks from another, which is imported for the first of them."""

    def __init__(self, module: ModuleType, lacking: frozenset[str], other: str) -> None:
        self._module, self._lacking, self._other = module, lacking, other

    def __getattr__(self, name: str) -> object:
        return getattr(implementation(self._other) if name in self._lacking else self._module, name)


def _automatic(device: torch.device, dtypes: tuple[torch.dtype, torch.dtype], groups: Sequence[str]) -> str:
    *first, last = KERNELS_FOR.get(device.type, ("reference",))
    for backend in first:
        if unavailable(backend) is None and supports(backend, device, dtypes, groups[:1]):
            return backend
    return last if supports(last, device, dtypes, groups[:1]) else "reference"


def _objection(
    backend: str, device: torch.device, dtypes: tuple[torch.dtype, torch.dtype], groups: Sequence[str]
) -> str | None:
    """What the backend does not support of this, in words."""
    support = SUPPORT[backend]
    takes = dtypes[0] in support.dtypes and dtypes[1] in support.dtypes and (support.mixed or dtypes[0] == dtypes[1])
    on_device = support.devices is None or device.type in support.devices
    if not takes or not (on_device or (backend == "triton" and device.type == "cpu" and _interpreting())):
        return _logits(device, dtypes)
    # Without a GPU there are fake tensors at most.
    if device.type == "cuda" and support.capability > (0, 0) and torch.cuda.is_available():
        found = _capability(device)
        if found < support.capability:
            least, here = (".".join(str(n) for n in x) for x in (support.capability, found))
            return f"{_logits(device, dtypes)} of compute capability {here}, below {least}"
    missing = [group for group in groups if group not in support.groups]
    if missing:
        return f"{' and '.join(missing)}; backend='auto' takes {support.completed_by!r} for that"
    return None


def _logits(device: torch.device, dtypes: tuple[torch.dtype, torch.dtype]) -> str:
    names = " and ".join(str(d).removeprefix("torch.") for d in dict.fromkeys(dtypes))
    return f"{names} logits on {device.type}"


def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


# What torch.compiler.assume_constant_result sets, which would import the compiler.
_capability._dynamo_marked_constant = True


def _interpreting() -> bool:
    """Whether Triton's kernels run in its interpreter, that is, on CPU tensors."""
    if unavailable("triton"):
        return False
    from triton import knobs

    return knobs.runtime.interpret
