import json
import subprocess
import sys

import pytest
import torch

import kd_kernels as kd
from kd_kernels.backends import select
from kd_kernels.cli import info, main

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "fp64": torch.float64}


def test_text(capsys):
    assert main(["info"]) == 0
    printed = capsys.readouterr().out
    assert f"kd_kernels {kd.__version__}, torch {torch.__version__}" in printed
    assert f"{torch.get_num_threads()} threads" in printed
    assert "\ncpu        on cpu\n" in printed


def test_the_table_is_what_select_says(capsys):
    main(["info"])
    heading, *rows = capsys.readouterr().out.rsplit("\n\n", 1)[1].splitlines()
    backends = heading.split()[1:]
    assert backends == list(select.SUPPORT)
    starts = [heading.index(name) for name in backends]
    assert [row.split()[0] for row in rows] == [*kd.KINDS, "sinkhorn", "l1_cost", "sorted_l1"]
    for row in rows:
        for name, start, end in zip(backends, starts, [*starts[1:], None], strict=True):
            function = row.split()[0]
            has = ("rows" if function in kd.KINDS else function) in select.SUPPORT[name].groups
            assert {DTYPES[short] for short in row[start:end].split()} == (
                select.SUPPORT[name].dtypes if has else set()
            )


def test_json(capsys):
    assert main(["info", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["versions"]["torch"] == torch.__version__
    assert found["machine"]["simd"] in ("scalar", "avx2", "avx512")
    assert found["backends"]["cpu"] == {
        "devices": ["cpu"], "reason": None, "dtypes": ["float32", "bfloat16", "float16", "float64"],
    }  # fmt: skip
    assert found["kinds"]["tvd"] == [name for name, support in select.SUPPORT.items() if "rows" in support.groups]
    assert found["transport"]["sorted_l1"] == ["cpu", "triton", "reference"]


def test_a_kind_without_kernel_has_the_reference_only(monkeypatch):
    monkeypatch.setattr(kd.TVD, "kernel", None)
    assert info.describe()["kinds"]["tvd"] == ["reference"]


def test_says_what_is_missing(monkeypatch, capsys):
    monkeypatch.setattr(select, "unavailable", lambda backend: "it is not there" if backend == "cpu" else None)
    assert main(["info"]) == 0
    printed = capsys.readouterr().out
    assert "cpu        no: it is not there" in printed
    assert "SIMD of the native core: none" in printed


def test_a_core_that_does_not_load_is_described_not_raised(monkeypatch):
    def implementation(backend):
        raise ImportError("libgomp.so.1: cannot open shared object file")

    monkeypatch.setattr(select, "implementation", implementation)
    assert info.reason("cpu") == "it cannot be imported: libgomp.so.1: cannot open shared object file"
    assert info.devices("cpu") == []


@pytest.mark.skipif(torch.cuda.is_available() or torch.xpu.is_available(), reason="there is a GPU")
def test_without_gpu_and_interpreter_triton_does_not_run():
    code = "from kd_kernels.cli import info; print(info.devices('triton'), info.reason('triton'))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"TRITON_INTERPRET": "0"}
    )
    assert done.stdout == "[] this machine has no cuda or xpu device that torch can use\n"
