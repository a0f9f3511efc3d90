"""`kd-kernels info`: versions, what this machine offers, which backends run here and what each supports."""

import importlib.metadata
import json
import platform
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from typing import Any

import torch

from kd_kernels.backends import select
from kd_kernels.divergences import KINDS

_PACKAGES = ("kd_kernels", "torch", "triton", "numpy")
_SHORT = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16", "float64": "fp64"}  # in the order shown


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: Namespace) -> int:
    """Prints the description; 0."""
    found = describe()
    print(json.dumps(found, indent=1) if args.json else "\n".join(lines(found)))
    return 0


def describe() -> dict[str, Any]:
    """Everything the command prints.

    Returns:
        versions: by package; None where it is not installed.
        machine: platform, threads, SIMD level of the native core in use and the best it has here, names of the GPUs.
        cuda: of the CUDA kernels, `architectures` they were built for, versions of the `runtime` linked in and of the
            newest that the `driver` serves, None where there is no driver; None where they were not built.
        backends: by name, `devices` on which it runs here (empty: it does not, and `reason` says why) and the `dtypes`
            of logits it takes.
        kinds: by name, the backends that compute it.
        transport: likewise, the functions of optimal transport.
    """
    return {
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in _PACKAGES},
        "machine": {
            "platform": platform.platform(),
            "threads": torch.get_num_threads(),
            **_simd(),
            "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        },
        "cuda": _cuda(),
        "backends": {
            name: {
                "devices": devices(name),
                "reason": reason(name),
                "dtypes": [dtype for dtype in _SHORT if getattr(torch, dtype) in support.dtypes],
            }
            for name, support in select.SUPPORT.items()
        },
        "kinds": {
            kind: [name for name in _with("rows") if name == "reference" or cls().kernel is not None]
            for kind, cls in KINDS.items()
        },
        "transport": {function: _with(function) for function in ("sinkhorn", "l1_cost", "sorted_l1")},
    }


def devices(backend: str) -> list[str]:
    """Types of the devices of this machine on which the backend runs; none where `reason` has one."""
    if _broken(backend) is not None:
        return []
    some = next(iter(select.SUPPORT[backend].dtypes))
    return [device for device in devices_here() if select.supports(backend, torch.device(device), (some, some))]


def devices_here() -> list[str]:
    """Types of the devices of this machine that torch can use."""
    accelerators = [name for name in ("cuda", "xpu") if getattr(torch, name).is_available()]
    return ["cpu", *accelerators]


def reason(backend: str) -> str | None:
    """Why the backend runs on no device of this machine; None where it runs."""
    broken = _broken(backend)
    if broken is not None or devices(backend):
        return broken
    return f"this machine has no {' or '.join(sorted(select.SUPPORT[backend].devices))} device that torch can use"


def lines(found: dict[str, Any]) -> Iterator[str]:
    """The description for people."""
    machine = found["machine"]
    yield ", ".join(f"{name} {version or '(not installed)'}" for name, version in found["versions"].items())
    yield f"{machine['platform']}, {machine['threads']} threads"
    yield f"SIMD of the native core: {machine['simd'] or 'none'}"
    yield f"CUDA kernels: {_cuda_line(found['cuda'])}"
    yield f"GPU: {', '.join(machine['gpus']) or 'none'}"
    yield ""
    for name, backend in found["backends"].items():
        where = f"on {', '.join(backend['devices'])}" if backend["devices"] else f"no: {backend['reason']}"
        yield f"{name:<10} {where}"
    yield ""
    dtypes = {name: " ".join(_SHORT[d] for d in backend["dtypes"]) for name, backend in found["backends"].items()}
    yield _line(["loss", *dtypes], dtypes)
    for kind, supported in (found["kinds"] | found["transport"]).items():
        yield _line([kind, *(text if name in supported else "" for name, text in dtypes.items())], dtypes)


def _line(cells: list[str], dtypes: dict[str, str]) -> str:
    widths = [16, *(max(len(name), len(text)) for name, text in dtypes.items())]
    return "  ".join(f"{cell:<{width}}" for cell, width in zip(cells, widths, strict=True)).rstrip()


def _broken(backend: str) -> str | None:
    """Why the backend cannot be used in this installation, whatever the device."""
    missing = select.unavailable(backend)
    if missing is not None or backend == "reference":
        return missing
    try:
        select.implementation(backend)
    except ImportError as error:  # such as a native core whose libraries are not there
        return f"it cannot be imported: {error}"
    return None


def _simd() -> dict[str, str | None]:
    if _broken("cpu") is not None:
        return {"simd": None, "best_simd": None}
    from kd_kernels import _core

    return {"simd": _core.simd().name, "best_simd": _core.best_simd().name}


def _cuda() -> dict[str, Any] | None:
    if _broken("cuda") is not None:
        return None
    from kd_kernels import _cuda

    driver = _cuda.driver_version()
    return {
        "architectures": _cuda.ARCHITECTURES.split(),
        "runtime": _dotted(_cuda.RUNTIME_VERSION),
        "driver": _dotted(driver) if driver else None,
    }


def _cuda_line(found: dict[str, Any] | None) -> str:
    if found is None:
        return "none"
    binary = [name.removesuffix("-real") for name in found["architectures"] if not name.endswith("-virtual")]
    portable = [name.removesuffix("-virtual") for name in found["architectures"] if not name.endswith("-real")]
    built = " ".join([*(f"sm_{name}" for name in binary), *(f"compute_{name}" for name in portable)])
    return f"for {built}; runtime {found['runtime']}, driver {found['driver'] or 'none'}"


def _dotted(version: int) -> str:
    """Of a version as CUDA numbers it."""
    return f"{version // 1000}.{version % 1000 // 10}"


def _with(group: str) -> list[str]:
    """The backends that have a group of functions."""
    return [name for name, support in select.SUPPORT.items() if group in support.groups]


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
