"""Hook of mkdocs: what a page links to outside docs/ becomes a page of the site, so that every link leads somewhere.

Pages are written for the repository, where `../conf` is a folder and `../benchmarks/figures.py` a file. Text files
become a page that shows them, folders a page that lists them, and pages such as CONTRIBUTING.md pages of their own.
"""

from __future__ import annotations

import os
import re
from pathlib import Path, PurePosixPath
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
LINK = re.compile(r"(?<=\]\()(?!https?:|mailto:|#)([^)#\s]+)")
HIDDEN = "---\nsearch:\n  exclude: true\n---\n\n"
"""What is shown as it is in the repository is left out of the search."""
LONGEST = 200_000
"""Bytes of a file that is shown; the rest is in the repository."""


def at(page: Path) -> PurePosixPath:
    """Where a file of the repository stands on the site."""
    inside = page.is_relative_to(DOCS)
    if inside and page.is_file() and page.suffix != ".py":
        return PurePosixPath(page.relative_to(DOCS).as_posix())
    name = page.relative_to(ROOT).as_posix()
    return PurePosixPath("source", name if page.suffix == ".md" else f"{name}.md")


def linked(text: str, page: Path) -> list[Path]:
    """Files and folders of the repository that a page links to."""
    found = [(page.parent / target).resolve() for target in LINK.findall(text)]
    return [each for each in found if each.exists() and each.is_relative_to(ROOT)]


def moved(text: str, page: Path) -> str:
    """The page's text with its links as they are on the site."""

    def there(match: re.Match[str]) -> str:
        target = (page.parent / match[1]).resolve()
        if not target.exists() or not target.is_relative_to(ROOT):
            return match[1]
        return os.path.relpath(at(target), at(page).parent)

    return LINK.sub(there, text)


def shown(path: Path) -> str:
    """A page of the site that shows a file or folder of the repository."""
    name = path.relative_to(ROOT).as_posix()
    if path.is_dir():
        inside = sorted(each for each in path.rglob("*") if each.suffix in (".yaml", ".py", ".txt", ".md"))
        rows = [f"- [{each.relative_to(path)}]({os.path.relpath(each, path.parent)})" for each in inside]
        return f"{HIDDEN}# {name}\n\n" + "\n".join(rows) + "\n"
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        return text
    kind = {".py": "python", ".yaml": "yaml", ".json": "json"}.get(path.suffix, "text")
    return f"{HIDDEN}# {name}\n\n~~~~ {kind}\n{text[:LONGEST]}\n~~~~\n"


def on_files(files: Any, config: Any) -> Any:
    """Add what pages link to, and what that links to."""
    known = {at(path) for path in DOCS.rglob("*.md")}
    waiting = sorted(DOCS.rglob("*.md"))
    while waiting:
        page = waiting.pop(0)
        text = page.read_text(encoding="utf-8") if page.suffix == ".md" else shown(page) if page.is_dir() else ""
        for target in linked(text, page):
            place = at(target)
            if place in known or (target.is_relative_to(DOCS) and target.is_file() and target.suffix != ".py"):
                continue
            known.add(place)
            waiting.append(target)
            files.append(File.generated(config, str(place), content=moved(shown(target), target)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Move the links of the pages in docs/."""
    source = DOCS / page.file.src_uri
    return moved(markdown, source) if source.is_file() else markdown
