"""The file map of docs/architecture.md, made of the modules' first sentences: `python docs/file_map.py --write`."""

from __future__ import annotations

import argparse
import ast
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("tsugi_kpool", "tsugi_cli", "recipes")
FOLDERS = [
    str(init.parent.relative_to(ROOT))
    for package in PACKAGES
    for init in sorted((ROOT / package).rglob("__init__.py"))
]
MARKED = re.compile(r"<!-- file map -->\n```\n.*?```", re.DOTALL)


def first_sentence(module: Path) -> str:
    """The first line of a module's docstring, without its full stop."""
    doc = ast.get_docstring(ast.parse(module.read_text(encoding="utf-8"))) or "?"
    return doc.splitlines()[0].rstrip(".")


def render() -> str:
    """One line for every folder and module."""
    lines = []
    for folder in FOLDERS:
        lines.append(f"{folder + '/':<28} {first_sentence(ROOT / folder / '__init__.py')}")
        modules = sorted(path for path in (ROOT / folder).glob("*.py") if path.name != "__init__.py")
        lines += [f"  {module.name:<26} {first_sentence(module)}" for module in modules]
    return "<!-- file map -->\n```\n" + "\n".join(lines) + "\n```"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true")
    page = ROOT / "docs" / "architecture.md"
    text = page.read_text(encoding="utf-8")
    rendered = MARKED.sub(lambda _: render(), text)
    if parser.parse_args().write:
        page.write_text(rendered, encoding="utf-8")
        return 0
    print("the file map agrees" if rendered == text else "the file map disagrees; run with --write")
    return int(rendered != text)


if __name__ == "__main__":
    sys.exit(main())
