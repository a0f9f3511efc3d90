"""Plants the bugs of one Triton source file, one after the other, and prints what is noticed of each as a JSON list.

    PYTHONPATH=FOLDER python check_triton.py FILE

FOLDER holds a copy of the package, which is changed. Nothing planted comes first, and must draw no complaint.
"""

import json
import sys
from pathlib import Path

from situations import SITUATIONS, complaint_alone
from triton_bugs import BUGS

import kd_kernels


def main(file: str) -> None:
    folder = Path(kd_kernels.__file__).parent / "backends/triton"
    original = (folder / file).read_text()
    bugs = [bug for bug in BUGS if bug.file == file]
    for kind in dict.fromkeys(bug.kind for bug in bugs):
        if unexpected := complaint_alone(kind, "triton", SITUATIONS):
            raise SystemExit(f"without a bug, {kind!r}: {unexpected}")
    complaints = []
    for bug in bugs:
        bug.plant(folder)
        complaints.append(complaint_alone(bug.kind, "triton", SITUATIONS))
        (folder / file).write_text(original)
    print(json.dumps(complaints))


if __name__ == "__main__":
    main(sys.argv[1])
