"""Makes a site of pages that are written to be read in the repository.

README.md and its companions become pages, and so do the files that pages link to outside of docs/ become files of the
site, each at its place in the repository. Links are turned accordingly; one that leads nowhere ends a strict build.
"""

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
PAGES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")
DOCS = "docs/"
# Code, which is left alone, or the target of a link within the repository.
LINK = re.compile(r"^```.*?^```|`[^`\n]*`|\[([^\]]*)\]\(([^)#:\s]+)([^)]*)\)", re.MULTILINE | re.DOTALL)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages outside of docs/, and what is linked there."""
    for name in PAGES:
        files.append(File.generated(config, name, abs_src_path=str(ROOT / name)))
    for page in list(files.documentation_pages()):
        for _, target, _ in LINK.findall(page.content_string):
            path = _resolved(page.src_uri, target)
            if target and not path.startswith(DOCS) and path not in files.src_uris and (ROOT / path).is_file():
                files.append(File.generated(config, path, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turns the links of a page; of one to a folder only its words stay."""
    here = posixpath.dirname(page.file.src_uri)

    def turn(match: re.Match) -> str:
        words, target, anchor = match.groups()
        if target is None:
            return match[0]
        path = _resolved(page.file.src_uri, target)
        if (ROOT / path).is_dir():
            return words
        return f"[{words}]({posixpath.relpath(path.removeprefix(DOCS), here or '.')}{anchor})"

    return LINK.sub(turn, markdown)


def _resolved(page: str, target: str) -> str:
    """Where a link of a page leads to, from the root of the repository."""
    folder = "" if page in PAGES else posixpath.join(DOCS, posixpath.dirname(page))
    return posixpath.normpath(posixpath.join(folder, target))
