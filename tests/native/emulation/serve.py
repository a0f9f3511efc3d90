"""The process in which kernels run emulated: calls of kd_kernels.backends.cuda come in, results go out.

    python serve.py MODULE

with the module that emulated_build.extension made. A call is a pickled tuple: name, arguments, keyword arguments, seed
of the scheduler, compute capability, other properties of the device. CPU tensors take the place of those on a device; what torch.cuda is asked about
them is answered here.
"""

import contextlib
import ctypes
import importlib.util
import os
import pickle
import sys
import traceback
from types import SimpleNamespace

import torch

_capability = (9, 0)
_properties = {}


def load(path: str) -> None:
    """Puts the module where `kd_kernels._cuda` is looked for."""
    spec = importlib.util.spec_from_file_location("kd_kernels._cuda", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules["kd_kernels._cuda"] = module
    import kd_kernels

    kd_kernels._cuda = module


def stand_in_for_devices() -> None:
    torch.cuda.current_stream = lambda device=None: SimpleNamespace(cuda_stream=0)
    torch.cuda.device = lambda device: contextlib.nullcontext()
    torch.cuda.get_device_capability = lambda device=None: _capability
    torch.cuda.get_device_properties = lambda device=None: SimpleNamespace(
        **{
            "major": _capability[0],
            "minor": _capability[1],
            "multi_processor_count": 4,
            "shared_memory_per_block_optin": 227 << 10,
            **_properties,
        }
    )


def main(path: str) -> None:
    global _capability, _properties
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)  # fills fresh memory with NaN
    load(path)
    stand_in_for_devices()
    seed = ctypes.CDLL(path).kd_emulation_seed
    seed.argtypes = [ctypes.c_uint64]
    from kd_kernels.backends import cuda

    while True:
        try:
            name, args, options, number, _capability, _properties = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        seed(number)
        try:
            answer = (True, getattr(cuda, name)(*args, **options))
        except Exception:
            answer = (False, traceback.format_exc())
        pickle.dump(answer, answers)
        answers.flush()


if __name__ == "__main__":
    main(sys.argv[1])
