"""What the sweeps of the row kernels cost an element of a row, counted in the machine code of the built module.

A sweep is a loop that loads a vector, or part of one, of both sides of a row from shared memory; one iteration is as
many elements as that holds. Rows that are far from convergence are swept 16 bytes at a time, near rows and entropies 8.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from bench.committed import ROOT, between, keep
from bench.resources import release
from kd_kernels.testing import cuda_binaries
from kd_kernels.testing.cuda_binaries import Code, Instruction

TARGET = "sm_90a"
PAGE = ROOT / "docs" / "cuda.md"
REPORT = ROOT / "bench" / "results" / "sass" / f"rows-{TARGET}.json"

_PART = "row_kernel_on_chip"
_KERNEL = re.compile(r"^row_kernel_on_chip<(.*), (\d)>$")  # family, bytes of an entry
_FP32 = {"FADD", "FMUL", "FFMA"}
_PAIRED = {"FADD2", "FMUL2", "FFMA2"}  # two results
_MAXIMUM = {"FMNMX", "FMNMX3", "HMNMX2", "VHMNMX"}
_BULK_LOAD, _BULK_STORE = re.compile(r"UBLKCP\.S\.G"), re.compile(r"UBLKCP\.G\.S")


@dataclass(frozen=True)
class Sweep:
    """Of one loop, by name of instruction with its width, how many there are an iteration of so many elements."""

    elements: int
    whole: bool  # 16 bytes of a side at a time: a far row
    counts: Counter

    @property
    def special(self) -> int:
        """Special-function operations."""
        return sum(n for name, n in self.counts.items() if name.startswith("MUFU"))

    @property
    def fp32(self) -> int:
        """Results of additions, products and both at once."""
        return sum(n * (2 if name in _PAIRED else 1) for name, n in self.counts.items() if name in _FP32 | _PAIRED)

    @property
    def total(self) -> int:
        return self.counts.total()


def sweeps(code: Code) -> list[Sweep]:
    """Those of a row kernel, in the order of the code."""
    entry_bytes = int(_KERNEL.match(code.kernel)[2])
    found = []
    for body in cuda_binaries.loops(code.instructions):
        counts = Counter(_name(at) for at in body)
        loads = {name: n for name, n in counts.items() if name.startswith("LDS")}
        width = next((bits for bits in (64, 128) if loads.keys() == {f"LDS.{bits}"}), 0)
        # Of both sides, and of what was kept of h beside the teacher. Vectors are moved on chip without arithmetic.
        if width and loads[f"LDS.{width}"] in (2, 3) and counts.keys() & (_FP32 | _PAIRED | _MAXIMUM):
            found.append(Sweep(width // 8 // entry_bytes, width == 128, counts))
    return found


def far(found: list[Sweep]) -> dict[str, float]:
    """Of all sweeps over a far row together, for an element: special functions, fp32 operations, instructions.

    What sweeps whole vectors after the sweeps of near rows is the end of these, where their terms were kept.
    """
    last = max((i for i, sweep in enumerate(found) if not sweep.whole), default=len(found))
    whole = [sweep for sweep in found[:last] if sweep.whole]
    return {
        "special": sum(sweep.special / sweep.elements for sweep in whole),
        "fp32": sum(sweep.fp32 / sweep.elements for sweep in whole),
        "instructions": sum(sweep.total / sweep.elements for sweep in whole),
    }


def traffic(code: Code) -> Counter:
    """Places in the code of a kernel that move data between a row in memory and the chip, by kind."""
    found = Counter()
    for at in code.instructions:
        if _BULK_LOAD.match(at.name):
            found["bulk load"] += 1
        elif _BULK_STORE.match(at.name):
            found["bulk store"] += 1
        elif at.name.startswith(("LDG", "STG")) and _name(at).endswith(".128"):
            found[_name(at)] += 1
    return found


def report(codes: list[Code]) -> dict[str, object]:
    """Of the row kernels on an architecture."""
    kernels = {}
    for code in codes:
        found = sweeps(code)
        kernels[code.kernel] = {
            "traffic": dict(sorted(traffic(code).items())),
            "far row, of an element": far(found),
            "sweeps": [
                {"elements": sweep.elements, "instructions": dict(sorted(sweep.counts.items()))} for sweep in found
            ],
        }
    return {"nvcc": release(), "target": TARGET, "kernels": kernels}


def row_kernels() -> list[Code]:
    """Machine code of the row kernels of the built module that hold a row on chip."""
    found = cuda_binaries.code(cuda_binaries.module(), TARGET, _PART)
    return [code for code in found if _KERNEL.match(code.kernel)]


def run(*, write: bool) -> int:
    """Prints the table; 1 where what is committed is not that of the module."""
    if cuda_binaries.module() is None:
        print("kd_kernels._cuda was not built")
        return 1
    found = report(row_kernels())
    page = "\n".join(table(found)) + "\n"
    print(page)
    wrong = keep(REPORT, json.dumps(found, indent=1) + "\n", write=write)
    return wrong | keep(PAGE, between(PAGE, "sass", page), write=write)


def table(found: dict[str, object]) -> Iterator[str]:
    """Of 16-bit logits, far rows: a line for each family."""
    yield "| family | special functions | fp32 operations | instructions |"
    yield "|---|---|---|---|"
    for name, kernel in found["kernels"].items():
        family, entry_bytes = _KERNEL.match(name).groups()
        if entry_bytes == "2":
            numbers = kernel["far row, of an element"]
            cells = (numbers["special"], numbers["fp32"], numbers["instructions"])
            yield f"| `{family}` | " + " | ".join(f"{x:.3g}" for x in cells) + " |"


def _name(at: Instruction) -> str:
    """With the width where it moves data, and the function where it is special; otherwise the instruction alone."""
    base, *modifiers = at.name.split(".")
    if base in ("LDG", "STG", "LDS", "STS", "LD", "ST"):
        width = next((m for m in modifiers if m in ("64", "128", "U8", "S8", "U16", "S16")), "32")
        return f"{base}.{width}"
    return at.name if base == "MUFU" else base
