"""The size of what the suite measures."""

import pytest
import torch


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("kd_kernels", "cases of kd_kernels")
    group.addoption("--rows", type=int, default=64)
    group.addoption("--vocab", type=int, default=151_936)
    group.addoption("--dtype", choices=["float32", "bfloat16", "float16"], default="bfloat16")
    group.addoption("--device", default="cuda" if torch.cuda.is_available() else "cpu")
