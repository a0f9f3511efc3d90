"""What Triton's compiler makes of the kernels, for GPUs that need not be present:

    python -m kd_kernels.testing.triton_resources sm_90 gfx942

prints one JSON object a line: the kernel, its registers and stack (or spilled registers) per thread, shared memory.
Triton's interpreter must be off.
"""

import argparse
import json
import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from kd_kernels.backends.triton import specialise
from kd_kernels.backends.triton.l1_cost_kernel import (
    l1_cost_kernel,
    l1_gain_kernel,
    l1_gradient_kernel,
    l1_statistics_kernel,
)
from kd_kernels.backends.triton.launch import (
    L1_BLOCK,
    L1_CHUNK,
    L1_GAIN,
    L1_STEP,
    L1_TILE,
    LISTED_BLOCK,
    ROW_BLOCK,
    TAIL_BLOCK,
    l1_options,
    row_options,
    sinkhorn_options,
    tail_options,
)
from kd_kernels.backends.triton.row_kernel import divergence_row_kernel
from kd_kernels.backends.triton.sinkhorn_backward_kernel import (
    sinkhorn_backward_kernel,
    sinkhorn_gain_kernel,
    sinkhorn_gradient_kernel,
    sinkhorn_mass_gradient_kernel,
    sinkhorn_turns_kernel,
)
from kd_kernels.backends.triton.sinkhorn_kernel import sinkhorn_kernel, sinkhorn_start_kernel, sinkhorn_value_kernel
from kd_kernels.backends.triton.sinkhorn_tiles import FOREIGN
from kd_kernels.backends.triton.slice_kernel import slice_gradient_kernel, slice_statistics_kernel, slice_sums_kernel
from kd_kernels.backends.triton.slices import flags
from kd_kernels.backends.triton.tail_kernel import listed_gradient_kernel, tail_gradient_kernel, tail_logits_kernel

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
# Every specialisation the divergences lower to.
FAMILIES = {
    "forward_kl": ("kl", [1.0, 0.0]),
    "reverse_kl": ("kl", [0.0, 1.0]),
    "jeffreys": ("kl", [1.0, 1.0]),
    "akl": ("akl", [0.5, 0.0]),
    "jsd": ("jsd", [0.5, 0.0]),
    "teacher_mixture": ("teacher_mixture", [0.9, 0.0]),
    "student_mixture": ("student_mixture", [0.1, 0.0]),
    "tvd": ("tvd", [0.0, 0.0]),
    "todi": ("todi", [1.0, 0.0]),
    "todi_power": ("todi", [2.0, 0.0]),
}
TAIL_KERNELS = {
    "tail_logits": (tail_logits_kernel, TAIL_BLOCK),
    "tail_gradient": (tail_gradient_kernel, TAIL_BLOCK),
    "listed_gradient": (listed_gradient_kernel, LISTED_BLOCK),
}
SLICE_KERNELS = {
    "statistics": slice_statistics_kernel,
    "sums": slice_sums_kernel,
    "gradient": slice_gradient_kernel,
}
SINKHORN_KERNELS = {
    "sinkhorn_start": sinkhorn_start_kernel,
    "sinkhorn": sinkhorn_kernel,
    "sinkhorn_value": sinkhorn_value_kernel,
    "sinkhorn_turns": sinkhorn_turns_kernel,
    "sinkhorn_gain": sinkhorn_gain_kernel,
    "sinkhorn_backward": sinkhorn_backward_kernel,
    "sinkhorn_mass_gradient": sinkhorn_mass_gradient_kernel,
    "sinkhorn_gradient": sinkhorn_gradient_kernel,
}
_GAIN_ROWS, _GAIN_COLUMNS, _GAIN_STEP = L1_GAIN
L1_KERNELS = {
    "l1_statistics": (l1_statistics_kernel, {"BLOCK": L1_BLOCK}),
    "l1_cost": (l1_cost_kernel, {"TILE": L1_TILE, "STEP": L1_STEP, "CHUNK": L1_CHUNK}),
    "l1_gain": (l1_gain_kernel, {"ROWS": _GAIN_ROWS, "COLUMNS": _GAIN_COLUMNS, "STEP": _GAIN_STEP}),
    "l1_gradient": (l1_gradient_kernel, {"ROWS": _GAIN_ROWS, "BLOCK": L1_BLOCK}),
}
_POINTERS = {torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float32: "*fp32"}
_LOGITS = ("student", "teacher", "logits", "gradient", "cost")
_REALS = (
    "value", "entropy", "weight", "upstream", "normalizer", "tail", "tail_factor", "entries", "statistics", "state",
    "sums", "factor", "plan_upstream", "masses", "start", "scalings", "kernel", "current", "shares", "centres", "f",
    "g", "plan", "error", "a_gradient", "b_gradient", "gains", "means", "partials",
)  # fmt: skip
_INTEGERS = (
    "rows", "columns", "width", "slots", "student_stride", "teacher_stride", "stride", "gradient_stride", "n", "m",
    "iterations", "batch", "all_rows", "first", "batch_stride", "row_stride", "column_stride", "plan_batch_stride",
    "plan_row_stride", "plan_column_stride", "student_batch_stride", "student_row_stride", "teacher_batch_stride",
    "teacher_row_stride", "upstream_batch_stride", "upstream_row_stride", "upstream_column_stride",
)  # fmt: skip
_OTHERS = {
    "eps": "*fp64", "frames": "*fp64", "lengths": "*i64", "run": "*i64", "second": "*i64", "turns": "*i32",
    "mask": "*u8", "student_mask": "*u8", "teacher_mask": "*u8",
}  # fmt: skip


def compile_row_kernel(family: str, dtype: torch.dtype, target: str, *, gradient: bool = True, aligned: bool = True):
    """The compiled kernel with every option on. `aligned`: the row length is a multiple of 16 entries."""
    name, params = FAMILIES[family]
    constants = specialise(name, params, dtype)
    del constants["curvature"]
    constants |= {"GRADIENT": gradient, "BLOCK": ROW_BLOCK}
    constants |= dict.fromkeys(("ENTROPY", "HAS_WEIGHT", "HAS_UPSTREAM", "HAS_NORMALIZER"), True)
    return _compile(divergence_row_kernel, constants, dtype, target, aligned, row_options(name, _is_amd(target)))


def compile_tail_kernel(name: str, dtype: torch.dtype, target: str, *, aligned: bool = True):
    kernel, block = TAIL_KERNELS[name]
    return _compile(kernel, {"HAS_WEIGHT": True, "BLOCK": block}, dtype, target, aligned, tail_options(_is_amd(target)))


def compile_slice_kernel(step: str, family: str, dtype: torch.dtype, target: str, *, aligned: bool = True):
    """The compiled kernel of a pass over slices with every option on; "statistics" has no family."""
    constants = {"HAS_WEIGHT": True, "BLOCK": ROW_BLOCK}
    constants |= {"ENTROPY": True} if step == "statistics" else flags(*FAMILIES[family])
    return _compile(SLICE_KERNELS[step], constants, dtype, target, aligned, row_options("kl", _is_amd(target)))


def compile_sinkhorn_kernel(name: str, dtype: torch.dtype, target: str, *, entropic: bool = False):
    """The compiled kernel with every option on."""
    kernel = SINKHORN_KERNELS[name]
    constants = dict.fromkeys(_flags(kernel), True)
    if "ENTROPIC" in constants:
        constants["ENTROPIC"] = entropic
    return _compile(kernel, constants, dtype, target, True, sinkhorn_options(_is_amd(target)))


def compile_l1_kernel(name: str, dtype: torch.dtype, target: str, *, softmax: bool = True):
    """The compiled kernel with every option on."""
    kernel, blocks = L1_KERNELS[name]
    constants = dict.fromkeys(_flags(kernel), True) | blocks
    if "SOFTMAX" in constants:
        constants["SOFTMAX"] = softmax
    options = l1_options if name in ("l1_cost", "l1_gain") else tail_options
    return _compile(kernel, constants, dtype, target, True, options(_is_amd(target)))


def _flags(kernel) -> list[str]:
    return [p.name for p in kernel.params if p.is_constexpr]


def _is_amd(target: str) -> bool:
    return TARGETS[target].backend == "hip"


def _compile(kernel, constants, dtype, target, aligned, options):
    signature, attributes = {}, {}
    for i, argument in enumerate(kernel.arg_names):
        if argument in constants:
            signature[argument] = "constexpr"
        elif argument in _LOGITS:
            signature[argument] = _POINTERS[dtype]
        elif argument in _REALS:
            signature[argument] = "*fp32"
        elif argument in _OTHERS:
            signature[argument] = _OTHERS[argument]
        elif argument == "ids":
            signature[argument] = "*i32" if kernel is tail_logits_kernel else "*i64"
        else:
            signature[argument] = "i32" if argument in _INTEGERS else "fp32"
        if kernel in SINKHORN_KERNELS.values():
            divisible = signature[argument].startswith("*") and argument not in FOREIGN
        else:
            divisible = argument in _LOGITS or (aligned and argument in _INTEGERS)
        if divisible:
            attributes[(i,)] = [["tt.divisibility", 16]]
    return triton.compile(
        ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes),
        target=TARGETS[target],
        options=options,
    )


def resources(kernel, target: str) -> dict[str, int]:
    """registers and stack bytes per thread (on AMD: spilled registers for the stack), shared bytes per program."""
    if TARGETS[target].backend == "hip":
        names = {"registers": "vgpr_count", "stack": "vgpr_spill_count", "shared": "group_segment_fixed_size"}
        found = {key: re.search(rf"\.{name}:\s+(\d+)", kernel.asm["amdgcn"]) for key, name in names.items()}
        return {key: int(match[1]) for key, match in found.items()}
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        command = [tool, "--dump-resource-usage", file.name]
        report = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:(\d+)", report)
    return dict(zip(("registers", "stack", "shared"), map(int, found.groups()), strict=True))


# dtype, with gradient, aligned: each on its own against the commonest.
VARIANTS = [
    (torch.bfloat16, True, True),
    (torch.bfloat16, True, False),
    (torch.bfloat16, False, True),
    (torch.float16, True, True),
    (torch.float32, True, True),
]


def survey(target: str) -> Iterator[dict[str, object]]:
    for dtype, gradient, aligned in VARIANTS:
        for family in FAMILIES:
            kernel = compile_row_kernel(family, dtype, target, gradient=gradient, aligned=aligned)
            what = {"kernel": "row", "target": target, "family": family, "dtype": str(dtype)[6:]}
            yield what | {"gradient": gradient, "aligned": aligned} | resources(kernel, target)
    for dtype, aligned in dict.fromkeys((dtype, aligned) for dtype, _, aligned in VARIANTS):
        what = {"target": target, "dtype": str(dtype)[6:], "aligned": aligned}
        for name in TAIL_KERNELS:
            kernel = compile_tail_kernel(name, dtype, target, aligned=aligned)
            yield {"kernel": name, "family": ""} | what | resources(kernel, target)
    for dtype, aligned in ((torch.bfloat16, True), (torch.bfloat16, False), (torch.float32, True)):
        for step, family in slice_kernels():
            kernel = compile_slice_kernel(step, family, dtype, target, aligned=aligned)
            what = {"kernel": f"slice_{step}", "target": target, "family": family, "dtype": str(dtype)[6:]}
            yield what | {"aligned": aligned} | resources(kernel, target)

    for name, dtype, variant in transport_kernels():
        compile_kernel = compile_sinkhorn_kernel if name in SINKHORN_KERNELS else compile_l1_kernel
        what = {"kernel": name, "target": target, "family": "", "dtype": str(dtype)[6:]} | variant
        yield what | resources(compile_kernel(name, dtype, target, **variant), target)


def transport_kernels() -> Iterator[tuple[str, torch.dtype, dict[str, bool]]]:
    """Every kernel of optimal transport, in both dtypes where it reads costs or logits, with either value or input."""
    for name, kernel in SINKHORN_KERNELS.items():
        if "cost" in kernel.arg_names:
            yield name, torch.bfloat16, {}
        yield name, torch.float32, {}
        if "ENTROPIC" in kernel.arg_names:
            yield name, torch.float32, {"entropic": True}
    for name, (kernel, _) in L1_KERNELS.items():
        yield name, torch.bfloat16, {}
        yield name, torch.float32, {}
        if "SOFTMAX" in kernel.arg_names:
            yield name, torch.float32, {"softmax": False}


def slice_kernels() -> Iterator[tuple[str, str]]:
    """Every step over slices with the families it is compiled for."""
    yield "statistics", ""
    for name, (family, _) in FAMILIES.items():
        if family == "akl":  # there a KL with weights
            continue
        if family != "kl":
            yield "sums", name
        yield "gradient", name


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("targets", nargs="*", metavar="target", help=f"of {', '.join(TARGETS)}; default all")
    for target in parser.parse_args().targets or TARGETS:
        for line in survey(target):
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
