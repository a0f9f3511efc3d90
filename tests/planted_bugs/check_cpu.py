"""Plants some bugs of the native core, one after the other, and prints what is noticed of each as a JSON list.

    PYTHONPATH=FOLDER python check_cpu.py BEGIN STEP

FOLDER holds copies of the package and of csrc, which are changed. Of the core only rows in float32 are built, with as
many lanes as the processor has registers for up to AVX2. Nothing planted comes first, and must draw no complaint.
"""

import json
import subprocess
import sys
import sysconfig
from pathlib import Path

import pybind11
from cpu_bugs import BUGS
from situations import FLOAT32_SITUATIONS, complaint_alone

import kd_kernels

ROWS = """
#define KD_ISA planted
#include "row_kernel.h"
#ifdef __AVX2__
#include "simd_avx2.h"
using Lane = kd::F32x8;
#else
using Lane = float;
#endif
kd::RowFunction kd::row_function_scalar(DType, DType) { return run_row<Lane, float, float>; }
"""
FLAGS = [
    "-std=c++17", "-O1", "-fPIC", "-fopenmp", "-fvisibility=hidden", "-fno-math-errno", "-fno-trapping-math",
    "-ffp-contract=off",
]  # fmt: skip
AVX2 = ["-mavx2", "-mfma", "-mf16c"]


class Core:
    """The extension module, built again where a source changes."""

    def __init__(self, folder: Path, avx2: bool) -> None:
        self.csrc = folder / "csrc"
        self.rows = self.csrc / "rows.cpp"
        self.rows.write_text(ROWS)
        self.rows_flags = AVX2 if avx2 else []
        self.library = folder / "kd_kernels" / f"_core{sysconfig.get_config_var('EXT_SUFFIX')}"
        for source in self.sources():
            self.compile(source)
        self.link()

    def sources(self) -> list[Path]:
        others = [path for path in (self.csrc / "cpu").glob("*.cpp") if not path.name.startswith("rows_")]
        return [self.rows, self.csrc / "bind.cpp", *others]

    def compile(self, source: Path) -> None:
        include = [self.csrc, self.csrc / "include", self.csrc / "cpu", pybind11.get_include()]
        paths = [f"-I{path}" for path in [*include, sysconfig.get_path("include")]]
        flags = self.rows_flags if source == self.rows else []
        subprocess.run(
            ["c++", *FLAGS, *flags, *paths, "-c", str(source), "-o", str(source.with_suffix(".o"))], check=True
        )

    def link(self) -> None:
        self.library.unlink(missing_ok=True)
        objects = [str(source.with_suffix(".o")) for source in self.sources()]
        subprocess.run(["c++", "-shared", "-fopenmp", *objects, "-o", str(self.library)], check=True)

    def rebuild(self, changed: Path) -> None:
        self.compile(changed if changed.suffix == ".cpp" else self.rows)
        self.link()


def main(begin: int, step: int) -> None:
    folder = Path(kd_kernels.__file__).parents[1]
    bugs = BUGS[begin::step]
    core = Core(folder, avx2=json.loads(sys.stdin.read()))
    for kind in dict.fromkeys(bug.kind for bug in bugs):
        if unexpected := complaint_alone(kind, "cpu", FLOAT32_SITUATIONS):
            raise SystemExit(f"without a bug, {kind!r}: {unexpected}")
    complaints = []
    for bug in bugs:
        path = core.csrc / bug.file
        original = path.read_text()
        bug.plant(core.csrc)
        core.rebuild(path)
        complaints.append(complaint_alone(bug.kind, "cpu", FLOAT32_SITUATIONS))
        path.write_text(original)
        if path.suffix == ".cpp":
            core.compile(path)
    print(json.dumps(complaints))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
