"""Bars and curves as SVG files that follow light and dark mode, with the words that say the same.

They are as wide as a telephone, so that letters keep their size there. A method has the same colour in every picture;
a variant of it is paler.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from math import log10
from statistics import fmean

from tsugi_cli.bench.compare.plots import colours
from tsugi_cli.bench.compare.statistics import Estimate
from tsugi_cli.bench.spec import METHODS
from tsugi_cli.pages.figures import COLOURS, WIDTH, Scale, text, ticks

STYLE = (
    "svg{--paper:#fff;--soft:#57606a;--line:#d8dee4}"
    "@media(prefers-color-scheme:dark){svg{--paper:#14171c;--soft:#b3bcc7;--line:#3b434d}}"
    "text{font:12px system-ui,sans-serif;fill:var(--soft);paint-order:stroke;"
    "stroke:var(--paper);stroke-width:4px}.paper{fill:var(--paper)}.head{font-weight:600}"
    ".axis{stroke:var(--soft);fill:none}.grid{stroke:var(--line);fill:none}"
    ".rule{stroke:var(--soft);stroke-dasharray:4 4;fill:none}"
)
LEFT, RIGHT, TOP = 12, 96, 14
ROW, HEAD = 44, 28
"""Height of a name and its bar below; of a heading."""
OURS = colours(METHODS) | {"hivemind": COLOURS[5], "tsugi_kpool_013": COLOURS[6], "no_sync": COLOURS[7]}
"""Each method's colour."""


@dataclass(frozen=True)
class Picture:
    """A file, and what it says in words."""

    svg: str
    words: str


@dataclass(frozen=True)
class Drawing:
    """How a picture is made."""

    of: tuple[str, ...]
    """Names of the results' files."""
    draw: Callable[..., Picture]
    caption: str
    """What stands below it, with what it does not show."""


@dataclass(frozen=True)
class Bar:
    """A row: its name, the value with its interval, the words behind it, whose colour it has."""

    name: str
    value: Estimate | None
    words: str
    method: str
    variant: bool = False


@dataclass(frozen=True)
class Curve:
    """A line through points. Its name stands below the last one, or above the first."""

    name: str
    points: Sequence[tuple[float, float]]
    method: str
    variant: bool = False
    named_first: bool = False


def picture(parts: Sequence[str], height: float, title: str) -> str:
    """A file's whole text."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" width="{WIDTH}" role="img">'
        f'<title>{escape(title)}</title><style>{STYLE}</style>'
        f'<rect class="paper" width="100%" height="100%" rx="6"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )  # fmt: skip


def spread(values: Sequence[float], middle: Callable[[Sequence[float]], float] = fmean) -> Estimate:
    """The middle, with the lowest and the highest for its whisker where there are several."""
    several = len(values) > 1
    return Estimate(middle(values), min(values) if several else None, max(values) if several else None)


def bars(rows: Sequence[Bar | str], title: str, mark: tuple[float, str] | None = None) -> Picture:
    """A bar for each row, a heading for each text. `mark` is a line across all, with its words."""
    known = [row.value for row in rows if isinstance(row, Bar) and row.value]
    ends = [end for each in known for end in (each.mean, each.low, each.high) if end is not None]
    ends += [mark[0]] if mark else []
    across = Scale(min(0.0, *ends), max(0.0, *ends), LEFT + (40 if min(ends) < 0 else 0), WIDTH - RIGHT)
    bottom = TOP + sum(ROW if isinstance(row, Bar) else HEAD for row in rows)
    parts = [f'<path class="axis" d="M{across(0.0):.1f} {TOP}V{bottom}"/>']
    if mark is not None:  # first, so that it lies behind all words
        x = across(mark[0])
        anchor, gap = ("end", -4) if x > WIDTH / 2 else ("start", 4)
        parts += [f'<path class="rule" d="M{x:.1f} {TOP}V{bottom}"/>', text(x + gap, bottom + 12, mark[1], anchor)]
    y = float(TOP)
    for row in rows:
        parts += _bar(row, across, y) if isinstance(row, Bar) else [_head(row, y)]
        y += ROW if isinstance(row, Bar) else HEAD
    parts.append(text(WIDTH / 2, bottom + 34, title, "middle"))
    return Picture(picture(parts, bottom + 44, title), _told(rows, title, mark))


def _told(rows: Sequence[Bar | str], title: str, mark: tuple[float, str] | None) -> str:
    said = [f"{row.name} {row.words}" if isinstance(row, Bar) else f"{row}:" for row in rows]
    said += [mark[1]] if mark else []
    return f"{title}: {', '.join(said)}".replace(":,", ":")


def _head(words: str, y: float) -> str:
    return text(LEFT + 4, y + 20, words, "start").replace("<text", '<text class="head"', 1)


def _bar(row: Bar, across: Scale, y: float) -> list[str]:
    parts = [text(LEFT + 4, y + 13, row.name, "start")]
    if row.value is None:
        return [*parts, text(LEFT + 4, y + 32, row.words, "start")]
    zero, end = across(0.0), across(row.value.mean)
    x, width = min(zero, end), max(1.0, abs(end - zero))
    parts.append(f'<rect x="{x:.1f}" y="{y + 20:g}" width="{width:.1f}" height="16" {_fill(row)}/>')
    after = max(zero, end)
    if row.value.low is not None and row.value.high is not None:
        low, high, middle = across(row.value.low), across(row.value.high), y + 28
        ends = f"M{low:.1f} {y + 24:g}v8M{high:.1f} {y + 24:g}v8"
        parts.append(f'<path class="axis" d="M{low:.1f} {middle:g}H{high:.1f}{ends}"/>')
        after = max(after, high)
    return [*parts, text(after + 6, y + 32, row.words, "start")]


def _fill(row: Bar) -> str:
    colour = OURS[row.method]
    return f'fill="{colour}" fill-opacity="0.4" stroke="{colour}"' if row.variant else f'fill="{colour}"'


def curves(
    lines: Sequence[Curve], title: str, down: Scale, marks: Sequence[tuple[float, str]], places: Sequence[float]
) -> Picture:
    """Lines over a logarithmic axis. `marks` are the values with a grid line, `places` those named below."""
    left, bottom, right = 50, 180, WIDTH - 24
    across = Scale(log10(min(places)), log10(max(places)), left + 8, right - 8)
    height = Scale(down.low, down.high, TOP, bottom)
    parts = [f'<path class="axis" d="M{left} {TOP}V{bottom}H{right}"/>']
    for value, words in marks:
        y = height(value)
        parts += [f'<path class="grid" d="M{left} {y:.1f}H{right}"/>', text(left - 6, y + 4, words, "end")]
    parts += [text(across(log10(value)), bottom + 16, f"{value:,g}", "middle") for value in places]
    for line in lines:
        colour = OURS[line.method]
        points = [(across(log10(x)), height(y)) for x, y in line.points]
        drawn, dash = " ".join(f"{x:.1f},{y:.1f}" for x, y in points), ' stroke-dasharray="5 3"' * line.variant
        parts.append(f'<polyline points="{drawn}" fill="none" stroke="{colour}" stroke-width="2"{dash}/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in points]
    for line in lines:  # behind all lines, so that none runs through it
        x, y = line.points[0 if line.named_first else -1]
        lower, anchor = (-7, "start") if line.named_first else (18, "end")
        parts.append(text(across(log10(x)), height(y) + lower, line.name, anchor))
    parts.append(text(WIDTH / 2, bottom + 38, title, "middle"))
    return Picture(picture(parts, 230, title), title)


def shares() -> list[tuple[float, str]]:
    """Grid lines from 0 to 100 %."""
    return [(share, f"{share:.0%}") for share in ticks(0.0, 1.0, 5)]


def block(name: str, drawing: Drawing, drawn: Picture, folder: str) -> str:
    """What a page shows: the picture with its words, and its caption."""
    return f"![{drawn.words}]({folder}pictures/{name}.svg)\n\n*{drawing.caption}*"
