"""Builds the native modules with CMake. Metadata is in pyproject.toml."""

import os
import subprocess
import sys
from pathlib import Path

import pybind11
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

# Of the environment, what CMake takes as options of the same names.
OPTIONS = ("KD_CUDA", "KD_CUDA_ARCHITECTURES")


class CMakeExtension(Extension):
    """A target of CMake. An optional one is not built where CMake finds nothing to build it with."""

    def __init__(self, name: str, *, optional: bool = False) -> None:
        super().__init__(name, sources=[], optional=optional)


class CMakeBuild(build_ext):
    """Runs CMake and puts the modules where setuptools wants them; KD_CMAKE_ARGS reaches CMake as it is."""

    def build_extensions(self) -> None:
        source = Path(__file__).parent.resolve()
        (target,) = {Path(self.get_ext_fullpath(ext.name)).parent.resolve() for ext in self.extensions}
        build = Path(self.build_temp).resolve() / "cmake"
        build.mkdir(parents=True, exist_ok=True)
        for ext in self.extensions:  # of an earlier build: this one might not make it again
            Path(self.get_ext_fullpath(ext.name)).unlink(missing_ok=True)
        configure = [
            "cmake", "-S", str(source), "-B", str(build), "-G", "Ninja",
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={target}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            *(f"-D{name}={os.environ[name]}" for name in OPTIONS if name in os.environ),
            *os.environ.get("KD_CMAKE_ARGS", "").split(),
        ]  # fmt: skip
        subprocess.run(configure, check=True)
        targets = [ext.name.rpartition(".")[2] for ext in self.extensions]
        subprocess.run(["cmake", "--build", str(build), "--target", *targets], check=True)

    def copy_extensions_to_source(self) -> None:
        super().copy_extensions_to_source()
        for name in (self.get_ext_filename(ext.name) for ext in self.extensions):
            if not Path(self.build_lib, name).exists():  # and what an earlier build left beside the sources is stale
                Path(__file__).parent.joinpath(name).unlink(missing_ok=True)


setup(
    ext_modules=[CMakeExtension("kd_kernels._core"), CMakeExtension("kd_kernels._cuda", optional=True)],
    cmdclass={"build_ext": CMakeBuild},
)
