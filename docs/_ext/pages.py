"""Pages as they are on GitHub, read for the site.

A link to CHANGELOG.md is right on GitHub; here it has to lead to the page that includes
it. `text(page)` is what Sphinx reads, and what the tests do.
"""

from __future__ import annotations

import functools
import os
import pathlib
import re
import shutil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sphinx.application import Sphinx

DOCS = pathlib.Path(__file__).parents[1]
ROOT = DOCS.parent
INCLUDE = re.compile(r"^```\{include\} (\S+)\n```$", re.MULTILINE)
LINK = re.compile(r"(?<=\]\()(?!https?:|mailto:|#)([^)\s#]+)")


def sources() -> list[pathlib.Path]:
    """Every page that is written by hand or by a script, notebooks left out."""
    built = DOCS / "_build", DOCS / "notebooks"
    pages = sorted(DOCS.rglob("*.md"))
    return [page for page in pages if not any(x in page.parents for x in built)]


@functools.cache
def homes() -> dict[pathlib.Path, pathlib.Path]:
    """Files from outside docs/, and the page of the site that has them."""
    notebooks = ROOT.glob("notebooks/*.ipynb")
    found = {path: DOCS / "notebooks" / path.name for path in notebooks}
    for page in sources():
        for name in INCLUDE.findall(page.read_text("utf-8")):
            found[(page.parent / name).resolve()] = page
    return found | {ROOT / "README.md": DOCS / "index.md"}


def linked(text: str, file: pathlib.Path, page: pathlib.Path) -> str:
    """A file's text with its links as they are on a page of the site."""

    def moved(match: re.Match[str]) -> str:
        path = (file.parent / match[1]).resolve()
        if not path.exists():
            return match[1]  # no link, or one that the build will complain of
        target = homes().get(path, path)
        return pathlib.Path(os.path.relpath(target, page.parent)).as_posix()

    return LINK.sub(moved, text)


def text(page: pathlib.Path) -> str:
    """A page with the files that it includes."""

    def included(match: re.Match[str]) -> str:
        file = (page.parent / match[1]).resolve()
        return linked(file.read_text("utf-8"), file, page).strip()

    own = linked(page.read_text("utf-8"), page, page)
    return INCLUDE.sub(included, own)


def read(app: Sphinx, docname: str, source: list[str]) -> None:
    """Sphinx's event: gives it `text`, and says which files the page depends on."""
    page = DOCS / f"{docname}.md"
    if not page.exists():  # a notebook
        page = DOCS / f"{docname}.ipynb"
        source[0] = linked(source[0], ROOT / f"{docname}.ipynb", page)
        return
    for name in INCLUDE.findall(page.read_text("utf-8")):
        app.env.note_dependency(str((page.parent / name).resolve()))
    source[0] = text(page)


def notebooks(app: Sphinx) -> None:
    """Puts the notebooks where Sphinx looks for pages."""
    folder = DOCS / "notebooks"
    folder.mkdir(exist_ok=True)
    here = {path.name: path for path in ROOT.glob("notebooks/*.ipynb")}
    for old in folder.glob("*.ipynb"):
        if old.name not in here:
            old.unlink()
    for name, path in here.items():
        copy = folder / name
        if not copy.exists() or copy.read_bytes() != path.read_bytes():
            shutil.copy(path, copy)


def setup(app: Sphinx) -> dict[str, bool]:
    """Connects the events."""
    app.connect("builder-inited", notebooks)
    app.connect("source-read", read)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
