"""The backend `cuda` on a GPU, called as tests call the emulated one."""

import contextlib
from types import SimpleNamespace
from unittest import mock

import torch
from torch import Tensor


class DeviceCuda:
    """Functions of kd_kernels.backends.cuda on CPU tensors, by way of the GPU: what runs emulated elsewhere runs there.

    `seed` has no meaning here; `written` and `constants` are as in EmulatedCuda. With a lower `capability` the forms
    for older devices run, with other `properties` those for such a device.
    """

    def __getattr__(self, name: str):
        if name.startswith("_"):
            raise AttributeError(name)

        def call(*args, seed=0, capability=None, properties=None, constants=None, written=None, **options):
            from kd_kernels.backends import cuda

            here = torch.cuda.get_device_capability()
            told = here if capability is None else min(tuple(capability), here)
            real = torch.cuda.get_device_properties()
            like = SimpleNamespace(**{x: getattr(real, x) for x in dir(real) if x[0] != "_"} | (properties or {}))
            args, options = moved((args, options), "cuda")
            with contextlib.ExitStack() as patches:
                patches.enter_context(mock.patch.object(torch.cuda, "get_device_capability", return_value=told))
                patches.enter_context(mock.patch.object(torch.cuda, "get_device_properties", return_value=like))
                for constant, value in (constants or {}).items():
                    patches.enter_context(mock.patch(f"kd_kernels.backends.cuda.{constant}", value))
                result = getattr(cuda, name)(*args, **options)
            torch.cuda.synchronize()
            return moved(result if written is None else (result, [args[i] for i in written]), "cpu")

        return call


def moved(value, device: str, storages: dict | None = None):
    """Tensors anywhere in tuples, lists and dicts, on another device: of the same strides and alignment, and over one
    memory where they shared it."""
    storages = {} if storages is None else storages
    if isinstance(value, Tensor):
        memory = value.untyped_storage()
        if memory.data_ptr() not in storages:
            storages[memory.data_ptr()] = torch.tensor([], dtype=torch.uint8).set_(memory).to(device, copy=True)
        target = torch.empty(0, dtype=value.dtype, device=device)
        copy = storages[memory.data_ptr()].untyped_storage()
        return target.set_(copy, value.storage_offset(), value.shape, value.stride())
    if isinstance(value, dict):
        return {name: moved(x, device, storages) for name, x in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(moved(x, device, storages) for x in value)
    return value
