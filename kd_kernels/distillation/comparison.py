"""Several methods on one text from one start: a run of `kd-kernels distill` each, and what they found side by side.

Each run is a process of its own, so that its peak of memory is its own; a comparison that was cut short goes on where
its runs left off.
"""

import csv
import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from kd_kernels.distillation import folder, plot
from kd_kernels.distillation.files import replace_file, write_json
from kd_kernels.distillation.journal import METRICS
from kd_kernels.distillation.stop import Stopped, deferred_signals

JSON, CSV, PLOT = "comparison.json", "comparison.csv", "comparison.png"
COLUMNS = {
    "cross_entropy": "cross-entropy",
    "forward_kl": "KL(p, q)",
    "reverse_kl": "KL(q, p)",
    "seconds_per_step": "s/step",
    "peak_mb": "peak MiB",
}
POLL = 0.2  # seconds


def compare(runs: Mapping[str, Sequence[str]], out: Path) -> dict[str, Any]:
    """Makes the runs that are not finished yet, one after another.

    Args:
        runs: by name, the command line of each, which writes to `folder_of(out, name)`.
        out: a folder for the comparison.

    Returns:
        What `comparison.json` holds: `before`, the start of all, `teacher`, and `runs` by name.

    Raises:
        ValueError: a run failed.
        Stopped: on SIGINT or SIGTERM, when the run under way has stopped.
    """
    for name, line in runs.items():
        print(f"== {name}", file=sys.stderr)
        status = run(line)
        if status:
            raise ValueError(f"{name} ended with status {status}")
    first = json.loads((folder_of(out, next(iter(runs))) / folder.RESULT).read_text())
    found = {name: _found(folder_of(out, name)) for name in runs}
    result = {"before": first["before"], "teacher": first["teacher"], "runs": found}
    write_json(out / JSON, result)
    replace_file(out / CSV, partial(_write_csv, result))
    replace_file(out / PLOT, partial(plot.draw_comparison, result, COLUMNS))
    return result


def folder_of(out: Path, name: str) -> Path:
    """Where a run writes to."""
    return out / re.sub(r"[^\w.+-]", "-", name)


def run(line: Sequence[str]) -> int:
    """Runs `kd-kernels` in a process that a signal reaches through this one alone. Returns its status."""
    with deferred_signals() as signals:
        command = [sys.executable, "-m", "kd_kernels", *line]
        process = subprocess.Popen(command, start_new_session=True, stdout=sys.stderr)
        try:
            while (status := process.poll()) is None:
                time.sleep(POLL)
                if len(signals) == 1:
                    process.send_signal(signals[0])
                    signals.append(signals[0])
        finally:  # a second signal acts at once, on both
            process.kill()
    if signals:
        raise Stopped(signals[0], "compare: stopped")
    return status


def table(result: Mapping[str, Any]) -> str:
    """For people: the runs as rows, the likest to the teacher first."""
    runs = sorted(result["runs"].items(), key=lambda item: item[1]["forward_kl"])
    width = max(map(len, ["held-out text, nats/token", *result["runs"]])) + 2
    lines = ["held-out text, nats/token".ljust(width) + "".join(f"{title:>15}" for title in COLUMNS.values())]
    for name, numbers in (("(before)", result["before"]), *runs, ("(teacher)", result["teacher"])):
        lines.append(name.ljust(width) + "".join(f"{_short(numbers.get(column)):>15}" for column in COLUMNS))
    return "\n".join(lines)


def _found(run: Path) -> dict[str, float]:
    """Held-out numbers after the last step, time of a step and peak of memory."""
    after = json.loads((run / folder.RESULT).read_text())["after"]
    records = [json.loads(line) for line in (run / METRICS).read_text().splitlines()]
    steps = [record for record in records if "loss" in record]
    return {
        **{name: after[name] for name in ("cross_entropy", "forward_kl", "reverse_kl")},
        "seconds_per_step": statistics.median(step["seconds"] for step in steps),
        "peak_mb": max(step[name] for step in steps for name in plot.MEMORY if name in step),
    }


def _write_csv(result: Mapping[str, Any], path: Path) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["run", *COLUMNS])
        writer.writeheader()
        writer.writerows({"run": name, **numbers} for name, numbers in result["runs"].items())


def _short(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}" if value < 1000 else f"{value:,.0f}"
