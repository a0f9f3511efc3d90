"""The native core under the address and undefined-behaviour sanitizers, fed by the fuzzers of this folder."""

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pybind11
import pytest

ROOT = Path(__file__).parents[2]
CALLS = 2000
FUZZERS = [
    "fuzz_l1_cost", "fuzz_outer_product", "fuzz_rows", "fuzz_sinkhorn", "fuzz_slices", "fuzz_sorted_l1", "fuzz_tail",
]  # fmt: skip
# Beside the interpreter, where a virtual environment has its tools.
PATH = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])


def run(*command, **environment):
    environment = os.environ | {"PATH": PATH} | environment
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return done.stdout


def has_sanitizers(folder):
    program = folder / "empty.cpp"
    program.write_text("int main() {}")
    command = ["c++", "-fsanitize=address,undefined", program, "-o", folder / "empty"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def test_random_calls(tmp_path):
    missing = [tool for tool in ("cmake", "ninja", "c++") if shutil.which(tool, path=PATH) is None]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}")
    if not has_sanitizers(tmp_path):
        pytest.skip("the C++ compiler comes without the sanitizers' libraries")
    build = tmp_path / "build"
    run(
        "cmake", "-S", ROOT, "-B", build, "-G", "Ninja", "-DKD_SANITIZE=ON", "-DCMAKE_BUILD_TYPE=None",
        "-DCMAKE_CXX_FLAGS=-O0", f"-DPython_EXECUTABLE={sys.executable}", f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
    )  # fmt: skip
    run("cmake", "--build", build, "--target", *FUZZERS)
    commands = [(build / fuzzer, seed, CALLS) for fuzzer in FUZZERS for seed in range(1, 5)]
    with ThreadPoolExecutor(2) as pool:
        outputs = pool.map(lambda command: run(*command, OMP_NUM_THREADS="2"), commands)
    assert list(outputs) == [f"{CALLS} calls\n"] * len(commands)
