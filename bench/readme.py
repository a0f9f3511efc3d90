"""The part of README.md about GPUs, from the results under bench/results: what was measured there, or that nothing was.

The folder of a GPU is what bench/gpu.sh leaves: the files of `kd-kernels bench --json`, by target and dtype.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.committed import ROOT, between, keep

PAGE = ROOT / "README.md"
RESULTS = ROOT / "bench" / "results"

NOTHING = """\
No GPU figure has been measured yet, so none is claimed. What stands in for one is the compiler's report on the CUDA
kernels, [docs/cuda.md](docs/cuda.md): registers, no memory of a thread, instructions per element. Without a GPU the
test suite runs the Triton kernels in Triton's interpreter, and the CUDA kernels emulated on the processor.
`bench/gpu.sh` is everything to do where a GPU is at hand.
"""


def run(*, write: bool) -> int:
    """1 where the page is not what the results say."""
    return keep(PAGE, between(PAGE, "gpu", section(RESULTS)), write=write)


def section(results: Path) -> str:
    """Of the page, for all GPUs that there are results of."""
    parts = ["\n".join(_of_gpu(documents)) + "\n" for documents in _by_gpu(results) if documents]
    return "\n".join(parts) or NOTHING


def _by_gpu(results: Path) -> Iterator[list[dict[str, Any]]]:
    for folder in sorted(path for path in results.iterdir() if path.is_dir()):
        documents = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
        yield [x for x in documents if x.get("machine", {}).get("gpu")]


def _of_gpu(documents: list[dict[str, Any]]) -> Iterator[str]:
    machine, ceilings = documents[0]["machine"], documents[0]["ceilings"]
    yield (
        f"On one {machine['gpu']}, torch {machine['torch']}, driver {machine['driver']}: a copy reaches "
        f"{ceilings['copy_bytes_per_second'] / 1e12:.2f} TB/s, a bfloat16 product "
        f"{ceilings['product_flops'] / 1e12:.0f} TFLOP/s. Loss and gradient, medians; the share is of the floor of its "
        "line: moving the bytes, or the matrix products alone."
    )
    yield ""
    yield "| loss | size | backend | time | share of floor | x faster than eager | compile | Liger | TRL |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for case in (case for document in documents for case in document["cases"]):
        timed = {p["name"]: p["seconds"]["median"] for p in case["providers"] if p["seconds"]}
        for name, seconds in timed.items():
            if name.startswith("kd-"):
                yield _line(case, name, seconds, timed)


def _line(case: dict[str, Any], name: str, seconds: float, timed: dict[str, float]) -> str:
    floor = case["floor"]
    cells = [
        f"{case['target']}, `{case['kind']}`, {case['dtype']}",
        " x ".join(str(n) for n in case["shape"].values()),
        f"`{name.removeprefix('kd-')}`",
        f"{1e3 * seconds:.3g} ms",
        f"{floor['seconds']['median'] / seconds:.0%}" if floor else "",
        *(f"{timed[peer] / seconds:.2g}" if peer in timed else "" for peer in ("eager", "compile", "liger", "trl")),
    ]
    return f"| {' | '.join(cells)} |"
