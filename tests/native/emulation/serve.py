"""The process in which kernels run emulated: calls of kd_kernels.backends.cuda come in, results go out.

    python serve.py MODULE

with the module that emulated_build.extension made. A call is a pickled tuple, the arguments of EmulatedBackend.call.
"""

import contextlib
import ctypes
import importlib.util
import os
import pickle
import sys
import traceback
from types import SimpleNamespace
from unittest import mock

import torch


class EmulatedBackend:
    """kd_kernels.backends.cuda in this process.

    CPU tensors take the place of those on a device; what torch.cuda is asked about them is answered here.
    """

    def __init__(self, path: str) -> None:
        sys.setdlopenflags(os.RTLD_LAZY | os.RTLD_LOCAL)  # a module of some of the sources lacks functions
        spec = importlib.util.spec_from_file_location("kd_kernels._cuda", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        sys.modules["kd_kernels._cuda"] = module
        import kd_kernels

        kd_kernels._cuda = module
        from kd_kernels.backends import cuda

        self._cuda = cuda
        self._seed = ctypes.CDLL(path).kd_emulation_seed
        self._seed.argtypes = [ctypes.c_uint64]
        self._properties = {}
        torch.use_deterministic_algorithms(True)  # fills fresh memory with NaN
        torch.cuda.current_stream = lambda device=None: SimpleNamespace(cuda_stream=0)
        torch.cuda.device = lambda device: contextlib.nullcontext()
        torch.cuda.get_device_capability = lambda device=None: (self._properties["major"], self._properties["minor"])
        torch.cuda.get_device_properties = lambda device=None: SimpleNamespace(**self._properties)

    def call(self, name, args, options, seed=0, capability=(9, 0), properties=None, constants=None, written=None):
        """A function of the backend, with the seed of the scheduler, what the device is like, and other values of
        constants of its modules, as {"l1_cost._GAINS": 1000}. With `written`, places of arguments that it writes to,
        a pair: its result, and those arguments."""
        self._properties = {
            "major": capability[0], "minor": capability[1], "multi_processor_count": 4,
            "shared_memory_per_block_optin": 227 << 10,
        } | (properties or {})  # fmt: skip
        self._seed(seed)
        with contextlib.ExitStack() as patches:
            for constant, value in (constants or {}).items():
                patches.enter_context(mock.patch(f"kd_kernels.backends.cuda.{constant}", value))
            result = getattr(self._cuda, name)(*args, **options)
        return result if written is None else (result, [args[i] for i in written])


def main(path: str) -> None:
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    torch.set_num_threads(1)
    backend = EmulatedBackend(path)
    while True:
        try:
            request = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        try:
            answer = (True, backend.call(*request))
        except Exception:
            answer = (False, traceback.format_exc())
        pickle.dump(answer, answers)
        answers.flush()


if __name__ == "__main__":
    main(sys.argv[1])
