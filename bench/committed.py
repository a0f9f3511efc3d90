"""Files that are made by a command, and committed."""

import difflib
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def keep(path: Path, text: str, *, write: bool) -> int:
    """Holds a file against what it should be, and says how they differ, or writes it anew; 1 where they differed."""
    old = path.read_text() if path.exists() else ""
    if text == old:
        return 0
    name = str(path.relative_to(ROOT))
    if write:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        print(f"{name} is written anew")
        return 0
    sys.stdout.writelines(difflib.unified_diff(old.splitlines(True), text.splitlines(True), name, "now"))
    return 1


def between(path: Path, name: str, text: str) -> str:
    """The text of a page with what lies between its marks of that name replaced."""
    begin, end = f"<!-- {name}: -->\n", f"<!-- :{name} -->"
    before, rest = path.read_text().split(begin)
    return before + begin + text + end + rest.split(end, 1)[1]
