"""The documentation as a site: built strictly, and whole."""

import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

pytest.importorskip("mkdocs")


def build(root: Path, out: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--config-file", root / "mkdocs.yml", "-d", out]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("site")
    done = build(ROOT, out)
    assert done.returncode == 0, done.stderr
    return out


class Links(HTMLParser):
    """What a page leads to, loads, and can be led to within."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.targets, self.loaded, self.anchors = [], [], set()
        self.feed(page.read_text())

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        found = dict(attributes)
        if "id" in found:
            self.anchors.add(found["id"])
        if tag == "a" and found.get("href"):
            self.targets.append(found["href"])
        self.loaded += [found[name] for name in ("src", "href") if tag in ("script", "img", "link") and name in found]


def pages(site: Path) -> dict[Path, Links]:
    return {page: Links(page) for page in site.rglob("*.html") if page.name not in ("404.html", "search.html")}


def test_there_is_a_page_for_each_file(site):
    written = {path.relative_to(ROOT / "docs").with_suffix(".html") for path in (ROOT / "docs").rglob("*.md")}
    beside = {Path("index.html"), Path("CONTRIBUTING.html"), Path("CHANGELOG.html")}
    assert {page.relative_to(site) for page in pages(site)} == written | beside


def test_every_link_leads_somewhere_within_the_site(site):
    found = pages(site)
    checked = 0
    for page, links in found.items():
        for target in links.targets:
            path, _, anchor = target.partition("#")
            if re.match(r"\w+:", target):
                continue
            linked = (page.parent / path).resolve() if path else page
            assert linked.is_file(), f"{page.name}: {target}"
            assert not anchor or linked not in found or anchor in found[linked].anchors, f"{page.name}: {target}"
            checked += 1
    assert checked > 500
    source = site / "kd_kernels" / "chunks" / "merge.py"  # linked from docs/concept.md
    assert source.read_text() == (ROOT / "kd_kernels" / "chunks" / "merge.py").read_text()


def test_pages_load_nothing_from_other_hosts(site):
    loaded = [target for links in pages(site).values() for target in links.loaded]
    assert loaded
    assert not [target for target in loaded if re.match(r"(\w+:)?//", target)]


@pytest.mark.parametrize(
    ("page", "text", "complaint"),
    [
        ("docs/concept.md", "[x](../kd_kernels/nowhere.py)", "kd_kernels/nowhere.py"),
        ("README.md", "[x](docs/kinds.md#nowhere)", "#nowhere"),
        ("docs/new.md", "# New", 'not included in the "nav"'),
    ],
)
def test_what_is_wrong_ends_the_build(tmp_path, page, text, complaint):
    for name in ("docs", "mkdocs.yml", "README.md", "CONTRIBUTING.md", "CHANGELOG.md", "LICENSE"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / name)
    for name in ("kd_kernels", "csrc", "tests", "bench"):
        (tmp_path / name).symlink_to(ROOT / name)
    with open(tmp_path / page, "a") as file:
        file.write(f"\n{text}\n")
    done = build(tmp_path, tmp_path / "out")
    assert done.returncode != 0
    assert complaint in done.stderr
