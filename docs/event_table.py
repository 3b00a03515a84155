"""The table of events in docs/running.md, rendered from their classes: `python docs/event_table.py --write`."""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

import msgspec

from tsugi_kpool.core.events import KINDS, Event

PAGE = Path(__file__).resolve().parent / "running.md"
MARKED = re.compile(r"<!-- events -->\n.*?<!-- end -->", re.DOTALL)


def row(name: str, kind: type[Event]) -> str:
    """An event as a row of the table."""
    fields = [f"`{each.name}`" if each.required else f"[`{each.name}`]" for each in msgspec.structs.fields(kind)]
    about = " ".join((kind.__doc__ or "").partition("\n\n")[0].split())
    return f"| `{name}` | {', '.join(fields)} | {about} |"


def table() -> str:
    """All events, in the order of their classes."""
    return "\n".join(["| event | fields | what |", "| --- | --- | --- |", *map(row, KINDS, KINDS.values())])


def page(text: str) -> str:
    """The page with the table as it is now."""
    return MARKED.sub(lambda _: f"<!-- events -->\n{table()}\n<!-- end -->", text)


def main() -> None:
    """Check the page, or write it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--write", action="store_true")
    text = PAGE.read_text(encoding="utf-8")
    if parser.parse_args().write:
        PAGE.write_text(page(text), encoding="utf-8")
    elif page(text) != text:
        sys.exit("docs/running.md: run python docs/event_table.py --write")


if __name__ == "__main__":
    main()
