"""The pages' tables and pictures of figures, rendered from benchmarks/results/*.json.

python benchmarks/figures.py --write    puts tables between the markers in README.md and docs/*.md, writes pictures
python benchmarks/figures.py            says whether pages and pictures agree
"""

from __future__ import annotations

import argparse
import functools
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bench_tables
import chaos_tables
import charts
import drawings
import engine_tables
import exchange_tables
import goal_tables
import peer_tables
import scale_tables
import straggler_tables

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PICTURES = ROOT / "docs" / "pictures"


def recipe(record: dict[str, Any]) -> str:
    """One row for each seed, base and trained."""
    # Perplexity says what the loss says.
    names = [name for name in record["runs"][0]["evaluation"]["base"] if name not in ("loss", "perplexity")]
    titles = ["seed", "eval loss", *(name.replace("_", " ") for name in names), "samples", "wall time"]
    rows = [titles, ["---"] * len(titles)]
    for run in record["runs"]:
        base, trained = run["evaluation"]["base"], run["evaluation"]["trained"]
        shares = [f"{base[name]:.1%} → {trained[name]:.1%}" for name in names]
        loss = f"{base['loss']:.3f} → {trained['loss']:.3f}"
        rows.append([str(run["seed"]), loss, *shares, str(run["samples"]), f"{run['wall_s']:.0f} s"])
    return _table(rows) + _source(record)


def straggler(record: dict[str, Any]) -> str:
    rows = [["setting", "fast replica's tokens/s, with / without the slow one", "pairs", "goodput"], ["---"] * 4]
    for name in record["settings"]:
        figures = record[name]
        ratio = figures["ratio"]
        goodput = min(pair[arm]["goodput"] for pair in figures["pairs"] for arm in ("with", "without"))
        text = f"{ratio['median']:.3f} ({ratio['min']:.3f} to {ratio['max']:.3f})"
        rows.append([name, text, str(len(figures["pairs"])), f"≥ {goodput:.3f}"])
    return _table(rows) + _source(record)


TABLES: dict[str, Callable[[dict[str, Any]], str]] = {
    "smollm2_tools": recipe,
    "smollm2_docstrings": recipe,
    "straggler": straggler,
}


def render(text: str, folder: str = "") -> str:
    """`text` with every marked block replaced by what the results say. `folder`: from the page to docs/."""
    for name, (result, table) in {**{name: (name, table) for name, table in TABLES.items()}, **ENGINE}.items():
        result, _, part = result.partition(":")
        path = RESULTS / f"{result}.json"
        if path.exists():
            record = json.loads(path.read_text())
            block = f"<!-- figures: {name} -->\n{table(record[part] if part else record)}\n<!-- end -->"
            text = re.sub(rf"<!-- figures: {name} -->.*?<!-- end -->", lambda _, b=block: b, text, flags=re.DOTALL)
    return re.sub(
        r"<!-- picture: (\S+) -->.*?<!-- end -->", lambda found: shown(found[1], folder), text, flags=re.DOTALL
    )


def shown(name: str, folder: str) -> str:
    """The block of a page that shows a picture: what it says in words, and its caption."""
    block = charts.block(name, drawings.DRAWINGS[name], drawn(name), folder)
    return f"<!-- picture: {name} -->\n{block}\n<!-- end -->"


@functools.cache
def drawn(name: str) -> charts.Picture:
    """A picture, from its results."""
    of, draw = drawings.DRAWINGS[name].of, drawings.DRAWINGS[name].draw
    return draw(*(json.loads((RESULTS / f"{each}.json").read_text()) for each in of))


def _engine(rows: Callable[[dict[str, Any]], list[list[str]]]) -> Callable[[dict[str, Any]], str]:
    return lambda record: _table(rows(record)) + _source(record)


ENGINE = {
    name: (result, _engine(rows))
    for name, (result, rows) in {
        **engine_tables.TABLES,
        **straggler_tables.TABLES,
        **goal_tables.TABLES,
        **bench_tables.TABLES,
        **peer_tables.TABLES,
        **chaos_tables.TABLES,
        **scale_tables.TABLES,
        **exchange_tables.TABLES,
    }.items()
}


def _table(rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _source(record: dict[str, Any]) -> str:
    machine = record["machine"]
    return (
        f"\n\n`{record['command']}`, commit {record['commit']}, {record['date']}: {machine['cores']} cores of "
        f"{machine['cpu']}, torch {machine['torch']}."
    )


def _pages() -> list[tuple[Path, str]]:
    pages = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
    folders = ("docs/" if page.parent == ROOT else "" for page in pages)
    return [(page, render(page.read_text(encoding="utf-8"), at)) for page, at in zip(pages, folders, strict=True)]


def _pictures() -> list[tuple[Path, str]]:
    return [(PICTURES / f"{name}.svg", drawn(name).svg) for name in drawings.DRAWINGS]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true")
    write, wrong = parser.parse_args().write, []
    for path, rendered in [*_pages(), *_pictures()]:
        if not path.exists() or path.read_text(encoding="utf-8") != rendered:
            wrong.append(str(path.relative_to(ROOT)))
            if write:
                path.write_text(rendered, encoding="utf-8")
    print(f"{', '.join(wrong)}: {'written' if write else 'disagrees; run with --write'}" if wrong else "all agree")
    return int(bool(wrong) and not write)


if __name__ == "__main__":
    sys.exit(main())
