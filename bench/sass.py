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

TARGETS = ("sm_90a", "sm_100")
PAGE = ROOT / "docs" / "cuda.md"
REPORT = ROOT / "bench" / "results" / "sass"

_KERNEL = re.compile(r"^row_kernel_on_chip<(.*), (\d)>$")  # family, bytes of an entry
_FP32 = {"FADD", "FMUL", "FFMA"}
_PAIRED = {"FADD2", "FMUL2", "FFMA2"}  # two results
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
        if width and loads[f"LDS.{width}"] in (2, 3):  # both sides, and what was kept of h beside the teacher
            found.append(Sweep(width // 8 // entry_bytes, width == 128, counts))
    return found


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


def report(target: str) -> dict[str, object]:
    """Of every row kernel on an architecture."""
    kernels = {}
    for code in cuda_binaries.code(cuda_binaries.module(), target):
        if _KERNEL.match(code.kernel):
            kernels[code.kernel] = {
                "traffic": dict(sorted(traffic(code).items())),
                "sweeps": [
                    {"elements": s.elements, "instructions": s.total, "special": s.special, "fp32": s.fp32}
                    | {"counts": dict(sorted(s.counts.items()))}
                    for s in sweeps(code)
                ],
            }  # fmt: skip
    return {"nvcc": release(), "target": target, "kernels": kernels}


def run(*, write: bool) -> int:
    """Prints the table; 1 where what is committed is not that of the module."""
    if cuda_binaries.module() is None:
        print("kd_kernels._cuda was not built")
        return 1
    reports = [report(target) for target in TARGETS]
    wrong = 0
    for found in reports:
        wrong |= keep(REPORT / f"{found['target']}.json", json.dumps(found, indent=1) + "\n", write=write)
    page = "\n".join(table(reports[0])) + "\n"
    print(page)
    return wrong | keep(PAGE, between(PAGE, "sass", page), write=write)


def table(found: dict[str, object]) -> Iterator[str]:
    """Of 16-bit logits, far rows: a line for each family."""
    yield "| family | sweeps | special functions | fp32 operations | instructions |"
    yield "|---|---|---|---|---|"
    for name, kernel in found["kernels"].items():
        family, entry_bytes = _KERNEL.match(name).groups()
        if entry_bytes == "2":
            whole = [s for s in kernel["sweeps"] if s["counts"].get("LDS.128")]
            cells = [sum(s[key] / s["elements"] for s in whole) for key in ("special", "fp32", "instructions")]
            yield f"| `{family}` | {len(whole)} | " + " | ".join(f"{x:.4g}" for x in cells) + " |"


def _name(at: Instruction) -> str:
    """With the width where it moves data, and the function where it is special; otherwise the instruction alone."""
    base, *modifiers = at.name.split(".")
    if base in ("LDG", "STG", "LDS", "STS", "LD", "ST"):
        width = next((m for m in modifiers if m in ("64", "128", "U8", "S8", "U16", "S16")), "32")
        return f"{base}.{width}"
    return at.name if base == "MUFU" else base
