"""Plants the bugs of one Python source file, one after the other, and prints what is noticed of each as a JSON list.

    PYTHONPATH=FOLDER python check_python.py GROUP FILE

FOLDER holds a copy of the package, which is changed. Nothing planted comes first, and must draw no complaint.
"""

import json
import sys
from pathlib import Path

import chunk_bugs
import triton_bugs
from situations import complaint_alone, situations_for

import kd_kernels

# Bugs, the folder of their files in the package, the backend that shows them, and modules that are imported with the
# package, in the order of their imports.
GROUPS = {
    "triton": (triton_bugs.BUGS, "backends/triton", "triton", ()),
    "chunks": (chunk_bugs.BUGS, "chunks", "cpu", ("kd_kernels.chunks.merge", "kd_kernels.chunks.slices")),
}


def main(group: str, file: str) -> None:
    bugs, place, backend, again = GROUPS[group]
    folder = Path(kd_kernels.__file__).parent / place
    original = (folder / file).read_text()
    bugs = [bug for bug in bugs if bug.file == file]
    situations = situations_for(file)
    for kind in dict.fromkeys(bug.kind for bug in bugs):
        if unexpected := complaint_alone(kind, backend, situations, again):
            raise SystemExit(f"without a bug, {kind!r}: {unexpected}")
    complaints = []
    for bug in bugs:
        bug.plant(folder)
        complaints.append(complaint_alone(bug.kind, backend, situations, again))
        (folder / file).write_text(original)
    print(json.dumps(complaints))


if __name__ == "__main__":
    main(*sys.argv[1:])
