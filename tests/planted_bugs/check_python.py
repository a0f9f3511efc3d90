"""Plants the bugs of one Python source file, one after the other, and prints what is noticed of each as a JSON list.

    PYTHONPATH=FOLDER:tests python check_python.py GROUP FILE
    PYTHONPATH=FOLDER:tests python check_python.py GROUP KIND...

FOLDER holds a copy of the package, which is changed. Nothing planted must draw no complaint: the second way goes
through all situations in which a bug may show by these kinds, the first only sees that the first of them can be run.
"""

import json
import sys
from collections.abc import Iterable
from pathlib import Path

import chunk_bugs
import interpreter
import triton_bugs
from bugs import Bug, kinds
from situations import complaint_alone, situations_for

import kd_kernels

# Bugs, the folder of their files in the package, the backend that shows them, and modules that are imported with the
# package, in the order of their imports.
GROUPS = {
    "triton": (triton_bugs.BUGS, "backends/triton", "triton", ()),
    "chunks": (chunk_bugs.BUGS, "chunks", "cpu", ("kd_kernels.chunks.merge", "kd_kernels.chunks.slices")),
}


def main(group: str, *what: str) -> None:
    bugs, place, backend, again = GROUPS[group]
    if backend == "triton":
        interpreter.quicken()
    folder = Path(kd_kernels.__file__).parent / place

    def noticed(bug: Bug, first: int | None = None) -> str | None:
        return complaint_alone(bug.kind, backend, situations_for(bug.file)[:first], again)

    def nothing_planted(bugs: Iterable[Bug], first: int | None = None) -> None:
        for bug in bugs:
            if unexpected := noticed(bug, first):
                raise SystemExit(f"without a bug, {bug.kind!r}, {bug.file}: {unexpected}")

    if set(what) <= set(kinds(bugs)):
        # One of those that show by the same kind in the same situations.
        distinct = {(bug.kind, id(situations_for(bug.file))): bug for bug in bugs if repr(bug.kind) in what}
        nothing_planted(distinct.values())
        print("[]")
        return
    (file,) = what
    bugs = [bug for bug in bugs if bug.file == file]
    nothing_planted({bug.kind: bug for bug in bugs}.values(), first=1)
    original = (folder / file).read_text()
    complaints = []
    for bug in bugs:
        bug.plant(folder)
        complaints.append(noticed(bug))
        (folder / file).write_text(original)
    print(json.dumps(complaints))


if __name__ == "__main__":
    main(*sys.argv[1:])
