"""What CMake decides about the CUDA kernels, before anything is built."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pybind11
import pytest

ROOT = Path(__file__).parents[2]
TOOLS = ("cmake", "ninja", "c++", "cc", "g++", "gcc", "as", "ld", "ar", "ranlib", "sh", "uname")

pytestmark = pytest.mark.skipif(shutil.which("c++") is None, reason="needs a C++ compiler")


def configure(folder: Path, nvcc: str | None, *options: str) -> subprocess.CompletedProcess:
    """Configures with nothing on the path but what a build needs, and an nvcc with this script for a body."""
    tools = folder / "tools"
    tools.mkdir()
    for name in TOOLS:
        if found := shutil.which(name):
            (tools / name).symlink_to(found)
    if nvcc is not None:
        (tools / "nvcc").write_text(f"#!/bin/sh\n{nvcc}\n")
        (tools / "nvcc").chmod(0o755)
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("CUDA", "KD_"))} | {"PATH": str(tools)}
    command = [
        "cmake", "-S", ROOT, "-B", folder / "build", "-G", "Ninja", f"-DPython_EXECUTABLE={sys.executable}",
        f"-Dpybind11_DIR={pybind11.get_cmake_dir()}", *options,
    ]  # fmt: skip
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_without_nvcc_the_package_is_built_without_them(tmp_path):
    done = configure(tmp_path, None)
    assert done.returncode == 0, done.stderr
    assert "-- The CUDA kernels are not built: no nvcc that works was found\n" in done.stdout
    rules = (tmp_path / "build" / "build.ninja").read_text()
    assert "csrc/cuda" not in rules
    assert "build _cuda: phony" in rules  # setup.py asks for it all the same


def test_asked_for_they_must_be_there(tmp_path):
    done = configure(tmp_path, None, "-DKD_CUDA=ON")
    assert done.returncode != 0
    assert "KD_CUDA is ON, but no nvcc that works was found" in done.stderr


def test_turned_off_nobody_looks_for_nvcc(tmp_path):
    done = configure(tmp_path, "exit 1", "-DKD_CUDA=OFF")
    assert done.returncode == 0, done.stderr
    assert "-- The CUDA kernels are not built: KD_CUDA is OFF\n" in done.stdout
    assert "CUDA compiler" not in done.stdout
