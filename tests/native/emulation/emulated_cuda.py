"""The backend `cuda` in a process of its own, on the emulated machine."""

import os
import pickle
import subprocess
import sys
import tempfile
from pathlib import Path

import emulated_build


class EmulatedCuda:
    """Functions of kd_kernels.backends.cuda, on CPU tensors: `emulated.l1_cost(...)`.

    Beside their arguments they take `seed`, of the order in which threads run, `capability` and other `properties` of
    the device they are told of, and `constants` of the backend's modules; with `written`, places of arguments that
    the function writes to, they return its result and those. What the emulated machine or the sanitizers report fails
    the call, and the next gets a new process.
    """

    def __init__(self, module: Path, sanitize: bool) -> None:
        self._module = module
        self._sanitize = sanitize
        self._process = None
        self._errors = None

    def __getattr__(self, name: str):
        if name.startswith("_"):
            raise AttributeError(name)
        return lambda *args, seed=0, capability=(9, 0), properties=None, constants=None, written=None, **options: (
            self._call(name, args, options, seed, capability, properties, constants, written)
        )

    def close(self) -> None:
        if self._process is not None:
            self._process.stdin.close()
            self._process.wait()
            self._process = None

    def _call(self, *request):
        if self._process is None:
            self._start()
        try:
            pickle.dump(request, self._process.stdin)
            self._process.stdin.flush()
            fine, answer = pickle.load(self._process.stdout)
        except (EOFError, BrokenPipeError):
            self._process.wait()
            self._process = None
            self._errors.seek(0)
            raise AssertionError(self._errors.read()[:6000]) from None
        if not fine:
            raise RuntimeError(answer)
        return answer

    def _start(self) -> None:
        environment = dict(os.environ)
        if self._sanitize:
            environment |= {"LD_PRELOAD": emulated_build.sanitizer_library(), "ASAN_OPTIONS": "detect_leaks=0"}
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - it is read when the process has died
        command = [sys.executable, str(emulated_build.HERE / "serve.py"), str(self._module)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, env=environment
        )
