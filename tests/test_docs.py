"""README and docs: their examples run, their links resolve, their tables are those of the code."""

import re
from pathlib import Path

import pytest
import torch

import kd_kernels as kd
from kd_kernels.backends import select
from kd_kernels.cli import COMMANDS
from kd_kernels.distillation.method import METHODS

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]

# Of the frameworks that have a page, those whose page uses them.
FRAMEWORKS = {"trl.md": "trl", "transformers.md": "accelerate"}

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def blocks(page: Path, language: str) -> list[tuple[int, str]]:
    """The fenced blocks of a language, with the number of the line before each."""
    text = page.read_text()
    found = re.finditer(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [(text.count("\n", 0, match.start(1)), match[1]) for match in found]


def outside_code(page: Path) -> str:
    return re.sub(r"^```.*?^```$|`[^`\n]*`", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def kinds_table(page: Path) -> list[tuple[str, str]]:
    return re.findall(r"^\| `(\w+)` \| `(kd\.\w+\(.*?\))` \|", page.read_text(), re.MULTILINE)


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=lambda page: page.name)
def test_examples_run(page):
    """The blocks of a page, from top to bottom, as one program."""
    if page.parent.name == "integrations" and page.name in FRAMEWORKS:
        pytest.importorskip(FRAMEWORKS[page.name])
    namespace = {"__name__": "__main__"}
    for line, code in blocks(page, "python"):
        exec(compile("\n" * line + code, str(page), "exec"), namespace)


@each_page
def test_links_resolve(page):
    for target in re.findall(r"\]\(([^)]+)\)", outside_code(page)):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), target
        assert not anchor or anchor in anchors(linked), target


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "docs/kinds.md"], ids=lambda page: page.name)
def test_the_table_of_kinds_is_that_of_the_code(page):
    table = kinds_table(page)
    assert [name for name, _ in table] == list(kd.KINDS)
    for name, constructor in table:
        kind = eval(constructor, {"kd": kd})
        assert kind == kd.KINDS[name]()
        assert constructor == f"kd.{kind!r}"  # with all its parameters


def test_the_table_of_backends_is_that_of_the_code():
    rows = re.findall(r"^\| `(\w+)` \| .*? \| (.*?) \|", (ROOT / "docs/backends.md").read_text(), re.MULTILINE)
    assert {name: {getattr(torch, d) for d in dtypes.split(", ")} for name, dtypes in rows} == {
        name: set(support.dtypes) for name, support in select.SUPPORT.items()
    }


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "docs/commands.md"], ids=lambda page: page.name)
def test_every_command_is_there_and_no_other(page):
    assert set(re.findall(r"kd-kernels ([a-z-]+)", page.read_text())) == set(COMMANDS)


def test_the_check_of_a_change_runs_the_documented_command():
    commands = [line for _, code in blocks(ROOT / "README.md", "bash") for line in code.splitlines()]
    (tests,) = (line for line in commands if "pytest" in line)
    assert tests in (ROOT / ".ci/run").read_text().splitlines()


def test_the_table_of_methods_is_that_of_the_command_line():
    """Every method with a page of its own, and the defaults of its options."""
    section = re.search(r"^### Methods$(.*?)^### ", (ROOT / "docs/commands.md").read_text(), re.MULTILINE | re.DOTALL)[
        1
    ]
    rows = re.findall(r"^\| (?:\[`(\w+)`\]\(methods/(\w+)\.md\)|`(divergence)`) \|.*\| (.*) \|$", section, re.MULTILINE)
    assert sorted(name or plain for name, _, plain, _ in rows) == sorted(METHODS)
    for name, page, plain, options in rows:
        assert name == page
        found = dict(re.findall(r"`--([\w-]+) ([\w.]+)`", options))
        defaults = METHODS[name or plain].defaults
        assert found
        for option, value in found.items():
            default = defaults.get(option.replace("-", "_"))
            assert default is None or (value == default if isinstance(default, str) else float(value) == default), (
                option
            )
