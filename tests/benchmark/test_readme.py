"""The part of README.md about GPUs is what the results say."""

import json
import shutil
from pathlib import Path

from bench import readme
from bench.committed import ROOT, between, keep

MACHINE = {"gpu": "NVIDIA Some GPU", "torch": "2.13.0", "driver": "580.1"}
CEILINGS = {"copy_bytes_per_second": 4.2e12, "product_flops": 7.9e14}


def provider(name, seconds):
    return {"name": name, "seconds": seconds and {"median": seconds}}


def document(machine):
    providers = [provider("kd-cuda", 2e-3), provider("kd-triton", 3e-3), provider("eager", 8e-2), provider("trl", None)]
    case = {
        "target": "rows", "kind": "jsd", "shape": {"rows": 8192, "vocab": 151_936}, "dtype": "bfloat16",
        "floor": {"name": "floor", "seconds": {"median": 1.8e-3}}, "providers": providers,
    }  # fmt: skip
    transport = {**case, "target": "transport", "kind": "sinkd", "floor": None}
    return {"machine": machine, "ceilings": CEILINGS, "cases": [case, transport]}


def test_readme_is_what_the_results_say():
    assert readme.run(write=False) == 0, "python -m bench readme --write"


def test_without_results_of_a_gpu_it_says_so(tmp_path):
    (tmp_path / "a-cpu").mkdir()
    (tmp_path / "a-cpu" / "rows.json").write_text(json.dumps(document({"gpu": None})))
    (tmp_path / "sass").mkdir()
    (tmp_path / "sass" / "sm_90a.json").write_text("{}")
    assert readme.section(tmp_path).startswith("No GPU figure has been measured yet, so none is claimed.")


def test_results_of_a_gpu_become_a_table(tmp_path):
    (tmp_path / "some-gpu").mkdir()
    (tmp_path / "some-gpu" / "rows.json").write_text(json.dumps(document(MACHINE)))
    text = readme.section(tmp_path)
    assert "No GPU figure" not in text
    assert "On one NVIDIA Some GPU, torch 2.13.0, driver 580.1: a copy reaches 4.20 TB/s" in text
    assert [line for line in text.splitlines() if "kd" not in line and "`jsd`" in line] == [
        "| rows, `jsd`, bfloat16 | 8192 x 151936 | `cuda` | 2 ms | 90% | 40 |  |  |  |",
        "| rows, `jsd`, bfloat16 | 8192 x 151936 | `triton` | 3 ms | 60% | 27 |  |  |  |",
    ]
    assert "| transport, `sinkd`, bfloat16 | 8192 x 151936 | `cuda` | 2 ms |  | 40 |  |  |  |" in text


def test_a_page_that_differs_shows_and_is_written(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("bench.committed.ROOT", tmp_path)
    page = Path(shutil.copy(ROOT / "README.md", tmp_path))
    changed = between(page, "gpu", "Another text.\n")
    assert keep(page, changed, write=False) == 1
    assert "+Another text." in capsys.readouterr().out
    assert keep(page, changed, write=True) == 0
    assert page.read_text() == changed
    assert keep(page, changed, write=False) == 0
