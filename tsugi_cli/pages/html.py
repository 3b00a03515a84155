"""Pieces of HTML that every page shares: style, tables, a whole document. Pure texts; foreign text is escaped."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from tsugi_cli.console.format import safe

MADE_BY = "<meta name='generator' content='tsugi'>"
"""Mark of a page that a later one may replace."""
STYLE = """
:root { color-scheme: light dark; --ink: #1b1e23; --paper: #fff; --soft: #6a737d; --line: #d8dee4; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ee; --paper: #14171c; --soft: #9aa4b0; --line: #343b44; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); margin: 2rem auto;
       max-width: 76rem; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin-bottom: 0; } h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; }
table { border-collapse: collapse; display: block; overflow-x: auto; } .soft { color: var(--soft); }
th, td { text-align: left; padding: .3rem .8rem .3rem 0; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { font-weight: 600; } pre { padding: .7rem 1rem; border: 1px solid var(--line); overflow-x: auto; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(26rem, 100%), 1fr)); gap: 1rem; }
figure { margin: 0; min-width: 0; }
svg { width: 100%; font: 12px system-ui, sans-serif; } svg text { fill: var(--soft); }
.axis { stroke: var(--soft); fill: none; } .grid { stroke: var(--line); fill: none; }
.rule { stroke: var(--soft); stroke-dasharray: 4 4; fill: none; }
.wraps td + td { white-space: normal; overflow-wrap: anywhere; }
.key { margin-right: 1.2rem; white-space: nowrap; }
.key i { display: inline-block; width: .8rem; height: .8rem; margin-right: .4rem; }
"""


def document(title: str, parts: Sequence[str], style: str = "") -> str:
    """Return a whole page. `parts` are HTML, empty ones are left out; `style` comes after what all pages have."""
    head = "<!doctype html><meta charset='utf-8'><meta name='viewport' content='width=device-width'>"
    head += f"{MADE_BY}<title>{shown(title)}</title>"
    return f"{head}<style>{STYLE}{style}</style>\n" + "\n".join(part for part in parts if part) + "\n"


def table(rows: Sequence[Sequence[str]], wraps: bool = False) -> str:
    """Return a table of texts, titles first. It scrolls where it is too wide; `wraps`: cells take several lines."""
    head = "".join(f"<th>{shown(cell)}</th>" for cell in rows[0])
    body = "".join(f"<tr>{''.join(f'<td>{shown(cell)}</td>' for cell in row)}</tr>" for row in rows[1:])
    kind = " class='wraps'" if wraps else ""
    return f"<table{kind}><tr>{head}</tr>{body}</table>"


def shown(text: object) -> str:
    """Return a text of which the browser obeys nothing, line breaks apart: markup, controls and bidi are escaped."""
    return escape(safe(text, keep="\n"))
