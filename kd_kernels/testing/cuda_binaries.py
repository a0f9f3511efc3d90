"""What the compiler made of the CUDA kernels: resources and instructions of every kernel in `kd_kernels._cuda`, for
every architecture it holds machine code for. No GPU is needed."""

import importlib.util
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

# Of demangled names, what says nothing: return type, namespaces.
_NOISE = re.compile(r"^void |\(anonymous namespace\)::|\b(?:kd|cuda|portable)::")
_ARCHITECTURE = re.compile(r"^arch = (sm_\w+)$")
_FUNCTION = re.compile(r"^\s*Function\s*:?\s*(\w+):?$")
_RESOURCES = re.compile(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)")
_INSTRUCTION = re.compile(r"^\s*/\*([0-9a-f]{4,})\*/\s+(?:(@!?U?P\w+)\s+)?([A-Z][\w.]*)\s*(.*?)\s*;")


class Resources(NamedTuple):
    """Of one kernel on one architecture: registers, bytes of stack and local memory of a thread, and of shared memory
    of a block beside what a launch asks for."""

    kernel: str
    target: str
    registers: int
    stack: int
    shared: int
    local: int


class Instruction(NamedTuple):
    address: int
    predicate: str  # "" for none
    name: str  # with its modifiers: "LDG.E.128"
    operands: str


class Code(NamedTuple):
    """Machine code of one kernel on one architecture."""

    kernel: str
    target: str
    instructions: list[Instruction]


def module() -> Path | None:
    """The file of `kd_kernels._cuda`; None where it was not built."""
    found = importlib.util.find_spec("kd_kernels._cuda")
    return None if found is None else Path(found.origin)


def cuobjdump() -> str | None:
    """The disassembler: that of the CUDA toolkit, or the one that comes with Triton."""
    triton = importlib.util.find_spec("triton")
    bundled = None if triton is None else Path(triton.origin).parent / "backends/nvidia/bin"
    return shutil.which("cuobjdump") or shutil.which("cuobjdump", path=bundled)


def resources(file: Path) -> list[Resources]:
    """Of every kernel in a module, or an object file, on every architecture; by kernel and architecture."""
    found, target, mangled = [], "", ""
    for line in _run(cuobjdump(), "--dump-resource-usage", str(file)).splitlines():
        if match := _ARCHITECTURE.match(line):
            target = match[1]
        elif match := _FUNCTION.match(line):
            mangled = match[1]
        elif match := _RESOURCES.search(line):
            found.append((mangled, target, *map(int, match.groups())))
    names = _demangled([mangled for mangled, *_ in found])
    return sorted(Resources(names[mangled], *rest) for mangled, *rest in found)


def code(file: Path, target: str, part: str = "") -> list[Code]:
    """Machine code for an architecture of every kernel whose mangled name has this part; by kernel."""
    listed = _run(cuobjdump(), "--dump-resource-usage", "--gpu-architecture", target, str(file)).splitlines()
    chosen = ",".join(match[1] for line in listed if (match := _FUNCTION.match(line)) and part in match[1])
    found, mangled = {}, ""
    sass = _run(cuobjdump(), "--dump-sass", "--gpu-architecture", target, "--function", chosen, str(file))
    for line in sass.splitlines():
        if match := _FUNCTION.match(line):
            mangled = match[1]
            found[mangled] = []
        elif match := _INSTRUCTION.match(line):
            address, predicate, name, operands = match.groups()
            found[mangled].append(Instruction(int(address, 16), predicate or "", name, operands))
    names = _demangled(list(found))
    return sorted(Code(names[mangled], target, instructions) for mangled, instructions in found.items())


def loops(instructions: list[Instruction]) -> Iterator[list[Instruction]]:
    """Bodies of the loops, in order, each without the loops inside it: what lies between the target of a branch
    backwards and the last such branch."""
    ends = {}  # by first address
    for at in instructions:
        target = re.search(r"0x([0-9a-f]+)\s*$", at.operands)
        if at.name.startswith("BRA") and target is not None and int(target[1], 16) < at.address:
            ends[int(target[1], 16)] = at.address
    for begin, end in sorted(ends.items()):
        inner = [(first, last) for first, last in ends.items() if begin < first and last <= end]
        yield [
            at
            for at in instructions
            if begin <= at.address <= end and not any(first <= at.address <= last for first, last in inner)
        ]


def _demangled(names: list[str]) -> dict[str, str]:
    if not names:
        return {}
    plain = subprocess.run(
        ["c++filt", "--no-params"], input="\n".join(names), capture_output=True, text=True, check=True
    ).stdout.splitlines()  # fmt: skip
    return {name: _NOISE.sub("", text) for name, text in zip(names, plain, strict=True)}


def _run(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
