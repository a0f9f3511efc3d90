"""Plants some bugs of the native core, one after the other, and prints what is noticed of each as a JSON list.

    PYTHONPATH=FOLDER python check_cpu.py BEGIN STEP

FOLDER holds copies of the package and of csrc, which are changed. Of the core only rows in float32 are built, with as
many lanes as the processor has registers for up to AVX2, and the bfloat16 product where it has the instructions. What
the processor has comes as a JSON object. Nothing planted comes first, and must draw no complaint.
"""

import json
import subprocess
import sys
import sysconfig
from pathlib import Path

import pybind11
from cpu_bugs import bugs_for
from situations import FLOAT32_SITUATIONS, complaint_alone, situations_for

import kd_kernels

# One translation unit for the kernels of each header, in a namespace of its own: a bug in one of them does not have to
# be compiled into the others, nor can the linker take theirs instead.
KERNELS = """
#define KD_ISA planted_{stem}
#include "{stem}.h"
#ifdef __AVX2__
#include "simd_avx2.h"
using Lane = kd::F32x8;
#else
using Lane = float;
#endif
{functions}
"""
FUNCTIONS = {
    "row_kernel": "kd::RowFunction kd::row_function_scalar(DType, DType) { return run_row<Lane, float, float>; }",
    "slice_kernel": (
        "kd::SliceFunction kd::slice_function_scalar(DType, DType) { return run_slice_row<Lane, float, float>; }"
    ),
    "tail": "kd::TailFunction kd::tail_function_scalar(DType) { return run_tail_row<Lane, float>; }",
    "sinkhorn_kernel": """
#include "sinkhorn_backward.h"
kd::SinkhornFunction kd::sinkhorn_function_scalar(DType) { return solve_sinkhorn<Lane, float>; }
kd::SinkhornBackwardFunction kd::sinkhorn_backward_function_scalar(DType) { return reverse_sinkhorn<Lane, float>; }
""",
    "l1_cost_kernel": (
        "kd::L1Functions kd::l1_functions_scalar(DType, DType) { return l1_functions_of<Lane, float, float>(); }"
    ),
    "sorted_l1_kernel": (
        "kd::SortedFunction kd::sorted_function_scalar(DType, DType) { return SortedRow<Lane, float, float>::run; }"
    ),
}
# Where headers without a unit of their own are compiled: those that several kernels share, into the rows alone.
UNITS = {"sinkhorn_backward": "sinkhorn_kernel", "sinkhorn_frame": "sinkhorn_kernel"}
OF_INSTRUCTION_SETS = ("_scalar.cpp", "_avx2.cpp", "_avx512.cpp")
FLAGS = [
    "-std=c++17", "-O1", "-fPIC", "-fopenmp", "-fvisibility=hidden", "-fno-math-errno", "-fno-trapping-math",
    "-ffp-contract=off",
]  # fmt: skip
AVX2 = ["-mavx2", "-mfma", "-mf16c"]
AVX512_BF16 = [*AVX2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512bf16", "-DKD_AVX512_BF16"]


class Core:
    """The extension module, built again where a source changes."""

    def __init__(self, folder: Path, processor: dict[str, bool]) -> None:
        self.csrc = folder / "csrc"
        self.flags = {}
        for stem, functions in FUNCTIONS.items():
            unit = self.unit(stem)
            unit.write_text(KERNELS.format(stem=stem, functions=functions))
            self.flags[unit] = AVX2 if processor["avx2"] else []
        if processor["avx512_bf16"]:
            self.flags[self.csrc / "cpu/outer_product.cpp"] = AVX512_BF16
        self.library = folder / "kd_kernels" / f"_core{sysconfig.get_config_var('EXT_SUFFIX')}"
        for source in self.sources():
            self.compile(source)
        self.link()

    def unit(self, stem: str) -> Path:
        return self.csrc / f"{stem}.cpp"

    def sources(self) -> list[Path]:
        others = [path for path in (self.csrc / "cpu").glob("*.cpp") if not path.name.endswith(OF_INSTRUCTION_SETS)]
        return [*map(self.unit, FUNCTIONS), self.csrc / "bind.cpp", *others]

    def source_of(self, changed: Path) -> Path:
        if changed.suffix == ".cpp":
            return changed
        return self.unit(changed.stem if changed.stem in FUNCTIONS else UNITS.get(changed.stem, "row_kernel"))

    def compile(self, source: Path) -> None:
        include = [self.csrc, self.csrc / "include", self.csrc / "cpu", pybind11.get_include()]
        paths = [f"-I{path}" for path in [*include, sysconfig.get_path("include")]]
        flags = [*FLAGS, *self.flags.get(source, [])]
        subprocess.run(["c++", *flags, *paths, "-c", str(source), "-o", str(source.with_suffix(".o"))], check=True)

    def link(self) -> None:
        self.library.unlink(missing_ok=True)
        objects = [str(source.with_suffix(".o")) for source in self.sources()]
        subprocess.run(["c++", "-shared", "-fopenmp", *objects, "-o", str(self.library)], check=True)


def main(begin: int, step: int) -> None:
    folder = Path(kd_kernels.__file__).parents[1]
    processor = json.loads(sys.stdin.read())
    bugs = bugs_for(processor)[begin::step]
    core = Core(folder, processor)
    for kind, file in dict.fromkeys((bug.kind, bug.file) for bug in bugs):
        if unexpected := complaint_alone(kind, "cpu", situations_for(file, FLOAT32_SITUATIONS)):
            raise SystemExit(f"without a bug, {kind!r}, {file}: {unexpected}")
    complaints = []
    stale = None  # what was compiled with a bug that is gone
    for bug in bugs:
        path = core.csrc / bug.file
        source, original = core.source_of(path), path.read_text()
        bug.plant(core.csrc)
        for changed in {stale, source} - {None}:
            core.compile(changed)
        core.link()
        complaints.append(complaint_alone(bug.kind, "cpu", situations_for(bug.file, FLOAT32_SITUATIONS)))
        path.write_text(original)
        stale = source
    print(json.dumps(complaints))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
