"""bench/gpu.sh runs on few machines: what can be checked of it is checked on all."""

import json
import os
import re
import shlex
import shutil
import subprocess
from argparse import ArgumentParser

import pytest

from bench.committed import ROOT
from kd_kernels.cli import bench

SCRIPT = ROOT / "bench" / "gpu.sh"

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")


def test_its_benchmarks_are_such_as_the_command_knows():
    text = SCRIPT.read_text().replace("\\\n", " ")
    lines = re.findall(r"^bench (\S+) \d+ (.*)$", text, re.MULTILINE)
    assert len({name for name, _ in lines}) == len(lines) >= 6
    targets = set()
    for _, options in lines:
        parser = ArgumentParser()
        bench.add_arguments(parser)
        arguments = parser.parse_args([*shlex.split(options), "--device", "cpu"])
        bench.complete(arguments)
        targets.add(arguments.target)
    assert targets == {"rows", "heads", "transport"}


@pytest.fixture
def checkout(tmp_path):
    """The script, and an interpreter that does as it is told by the first argument of a module."""
    (tmp_path / "bench").mkdir()
    shutil.copy(SCRIPT, tmp_path / "bench")
    python = tmp_path / "python"
    python.write_text(
        "#!/bin/bash\n"
        'case "$*" in\n'
        "*capability*) echo 90;;\n"
        "*get_device_name*) echo some-gpu;;\n"
        '*selftest*) echo "a loss is wrong"; exit 3;;\n'
        '*) echo "ran $* $KD_CUDA_ARCHITECTURES";;\n'
        "esac\n"
    )
    python.chmod(0o755)
    return tmp_path


def test_every_step_runs_and_a_failure_is_said_at_the_end(checkout):
    environment = os.environ | {"PATH": f"{checkout}:/usr/bin:/bin"}
    done = subprocess.run(
        ["bash", checkout / "bench" / "gpu.sh", checkout / "python"], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 1, done.stderr
    assert done.stdout.splitlines()[-1].endswith("1 failed: selftest")
    assert "ran setup.py build_ext --inplace 90a-real" in done.stdout
    assert "ran -m bench readme --write" in done.stdout
    results = json.loads((checkout / "bench" / "results" / "some-gpu" / "run.json").read_text())
    statuses = {step["name"]: step["status"] for step in results["steps"]}
    assert statuses.pop("selftest") == 3
    assert set(statuses.values()) == {0}
    assert {"build", "gpu-tests", "cuda-tests", "tests", "bench-rows-bfloat16"} <= statuses.keys()


def test_without_a_gpu_it_stops_at_once(checkout):
    (checkout / "python").write_text("#!/bin/sh\nexit 1\n")
    done = subprocess.run(["bash", checkout / "bench" / "gpu.sh", checkout / "python"], capture_output=True, text=True)
    assert done.returncode == 1
    assert not (checkout / "bench" / "results").exists()
