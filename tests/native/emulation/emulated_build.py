"""Builds the CUDA sources with the C++ compiler, for the emulated machine."""

import fcntl
import hashlib
import os
import re
import subprocess
import sysconfig
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pybind11

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
CSRC = ROOT / "csrc"
BUILD = ROOT / "build" / "emulation"

FLAGS = [
    "-std=c++17", "-O1", "-g1", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-Wall", "-Wno-unknown-pragmas",
    '-DKD_CUDA_ARCHITECTURES="emulated"',
]  # fmt: skip
# Without watching the stack, where no memory of a kernel lives: it makes the compiler slow.
SANITIZERS = [
    "-fsanitize=address,undefined,float-cast-overflow", "-fno-sanitize=null,object-size,pointer-overflow,vptr",
    "-fno-sanitize-recover=all", "--param=asan-stack=0",
]  # fmt: skip
_INCLUDE = re.compile(r'^\s*#include "([^"]+)"', re.MULTILINE)


def extension(csrc: Path = CSRC, folder: Path = BUILD, sanitize: bool = True, units: Iterable[str] = ()) -> Path:
    """The module `kd_kernels._cuda` from the sources in `csrc`; built where they are not those of the last time.

    Of `units`, stems of .cu files, where there are any: functions of the others must not be called. What has no kernels
    is compiled once for all folders.
    """
    cuda = csrc / "cuda"
    kernels = sorted(path for path in cuda.glob("*.cu") if not units or path.stem in units)
    jobs = [(kernel, folder) for kernel in kernels] + [
        (x, BUILD) for x in [cuda / "bind.cpp", *sorted(HERE.glob("*.cpp"))]
    ]
    name = f"_cuda{sysconfig.get_config_var('EXT_SUFFIX')}"
    return _link(_compile_all(jobs, csrc, sanitize), folder, name, ["-shared", "-Wl,-z,lazy"], sanitize)


def program(source: Path) -> Path:
    """A source of its own, with a main(), and the machine, under the sanitizers."""
    jobs = [(path, BUILD) for path in (source, HERE / "fiber.cpp", HERE / "scheduler.cpp")]
    return _link(_compile_all(jobs, CSRC, True), BUILD, source.stem, [], True)


def sanitizer_library() -> str:
    """What has to be loaded before a Python that imports the module."""
    command = ["c++", "-print-file-name=libasan.so"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def _compile_all(jobs: list[tuple[Path, Path]], csrc: Path, sanitize: bool) -> list[Path]:
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(lambda job: _compile(*job, csrc, sanitize), jobs))


def _compile(source: Path, folder: Path, csrc: Path, sanitize: bool) -> Path:
    includes = [csrc, csrc / "include", HERE]
    flags = [*FLAGS, *(SANITIZERS if sanitize and source.name != "bind.cpp" else [])]
    texts = _with_includes(source, includes)
    target = folder / f"{source.stem}-{_key([*flags, *texts.values()])}.o"
    paths = [f"-I{path}" for path in [*includes, pybind11.get_include(), sysconfig.get_path("include")]]
    return _make(target, ["c++", *flags, *paths, "-x", "c++", "-c", str(source)])


def _link(objects: list[Path], folder: Path, name: str, flags: list[str], sanitize: bool) -> Path:
    target = folder / _key(map(str, objects)) / name
    return _make(target, ["c++", *flags, *(SANITIZERS if sanitize else []), *map(str, objects)])


def _make(target: Path, command: list[str]) -> Path:
    """The file that the command writes, where it is not there yet. Of several processes one makes it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with open(f"{target}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():
            command = [*command, "-o", f"{target}.new"]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                raise RuntimeError(f"{' '.join(command)}\n{done.stderr[:6000]}")
            os.replace(f"{target}.new", target)
    return target


def _key(texts: Iterable[str]) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]


def _with_includes(source: Path, folders: list[Path]) -> dict[Path, str]:
    """The texts of a file and of what it includes, in a fixed order."""
    texts: dict[Path, str] = {}
    waiting = [source]
    while waiting:
        path = waiting.pop()
        if path in texts:
            continue
        texts[path] = path.read_text()
        for name in _INCLUDE.findall(texts[path]):
            waiting += [folder / name for folder in [path.parent, *folders] if (folder / name).exists()][:1]
    return texts
