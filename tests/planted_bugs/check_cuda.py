"""Plants the bugs of CUDA kernels, one after the other, and prints what is noticed of each as a JSON list.

    PYTHONPATH=FOLDER:TESTS python check_cuda.py LIST

LIST is a module of this folder that has BUGS. FOLDER holds copies of the package and of csrc, which are changed. The
kernels run on the emulated machine, without sanitizers: memory that was not written is NaN. Every bug has a process of
its own, for the machine ends it when it notices something. Of each check nothing planted comes first, and must draw no
complaint.
"""

import importlib
import json
import os
import sys
import tempfile
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "native" / "emulation"))

import emulated_build
import torch
from serve import EmulatedBackend

import kd_kernels

FOLDER = Path(kd_kernels.__file__).parents[1]


class Backend:
    """As in tests/cuda the functions of kd_kernels.backends.cuda, with the options that EmulatedCuda adds."""

    def __init__(self, module: Path) -> None:
        self._backend = EmulatedBackend(str(module))

    def __getattr__(self, name: str):
        return lambda *args, seed=0, capability=(9, 0), properties=None, constants=None, written=None, **options: (
            self._backend.call(name, args, options, seed, capability, properties, constants, written)
        )


def complaint(check, units: tuple[str, ...]) -> str | None:
    """What the check says of the sources as they are now, in a process that forked off for it."""
    module = emulated_build.extension(FOLDER / "csrc", FOLDER / "build", False, units)
    with tempfile.TemporaryFile("w+") as said:
        child = os.fork()
        if child == 0:
            os.dup2(said.fileno(), 1)
            os.dup2(said.fileno(), 2)
            try:
                torch.manual_seed(0)
                check(Backend(module))
            except BaseException:
                traceback.print_exc()
                sys.stderr.flush()
                os._exit(1)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        said.seek(0)
        return None if status == 0 else said.read()[-1000:] or f"status {status}"


def main(name: str) -> None:
    module = importlib.import_module(name)
    bugs = module.BUGS
    if hasattr(module, "prepare"):  # units of its own
        module.prepare(FOLDER / "csrc")
    torch.set_num_threads(1)
    for check, units in dict.fromkeys((bug.check, bug.units) for bug in bugs):
        if unexpected := complaint(check, units):
            raise SystemExit(f"without a bug, {check.__name__}: {unexpected}")
    complaints = []
    for bug in bugs:
        path = FOLDER / "csrc" / bug.file
        original = path.read_text()
        bug.plant(FOLDER / "csrc")
        complaints.append(complaint(bug.check, bug.units))
        path.write_text(original)
    print(json.dumps(complaints))


if __name__ == "__main__":
    main(sys.argv[1])
