"""Figures as inline SVG: scales, axes, texts, legends and fixed colours. Pure texts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape

from tsugi_cli.console.format import count, safe

COLOURS = ("#4269d0", "#b97d00", "#2f9a48", "#a0705a", "#e5533d", "#1f9a8c", "#a463f2", "#d6559d")
"""Each stands out from a white and from a dark page, at least 3 to 1."""
WIDTH, HEIGHT = 420, 260
"""About as many points as a telephone has, so that letters keep their size there."""
LARGEST = 1e12
"""A value beyond it is no loss, no second and no megabyte: it would flatten all others."""
LEFT, RIGHT, TOP, BOTTOM = 56, 20, 10, 40
SHORTENED = 10_000
"""Numbers on an axis are written in thousands from here on."""


@dataclass(frozen=True)
class Scale:
    """Maps values to places on the page."""

    low: float
    high: float
    start: float
    stop: float

    def __call__(self, value: float) -> float:
        span = self.high - self.low or 1.0
        return self.start + (value - self.low) / span * (self.stop - self.start)


def colour(number: int) -> str:
    """Return the colour of whatever has this number, the same in all figures."""
    return COLOURS[number % len(COLOURS)]


def legend(colours: Mapping[str, str]) -> str:
    """Return the legend of these names' colours."""
    keys = [
        f'<span class="key"><i style="background:{colour}"></i>{escape(safe(name))}</span>'
        for name, colour in colours.items()
    ]
    return f'<p class="legend">{"".join(keys)}</p>'


@dataclass(frozen=True)
class Series:
    """One line of a figure."""

    name: str
    points: Sequence[tuple[float, float]]
    colour: str
    dashed: bool = False


def lines(series: Sequence[Series], below: str, beside: str, from_zero: bool = False, begin: float = 0.0) -> str:
    """Return a figure of lines; empty when there is nothing to draw. A single point is a dot.

    Args:
        series: The lines.
        below: Title of the axis across, which goes from `begin` to the last point.
        beside: Title of the axis down.
        from_zero: Whether that begins at 0.
        begin: Where the axis across begins.
    """
    series = [replace(each, points=[(x, y) for x, y in each.points if abs(y) <= LARGEST]) for each in series]
    points = [point for each in series for point in each.points]
    if not points:
        return ""
    right = max(x for x, _ in points)
    low, high = min(y for _, y in points), max(y for _, y in points)
    low = min(0.0, low) if from_zero else low
    room = (high - low) * 0.05 or abs(high) * 0.05 or 1.0
    across = Scale(min(begin, right), right, LEFT, WIDTH - RIGHT)
    down = Scale(high + room, low - (0.0 if from_zero else room), TOP, HEIGHT - BOTTOM)
    parts = axes(across, down, below, beside)
    for each in series:
        parts += _line(each, across, down)
    return f"<figure>{svg(parts, WIDTH, HEIGHT)}</figure>"


def _line(series: Series, across: Scale, down: Scale) -> list[str]:
    places = [(across(x), down(y)) for x, y in series.points if x >= across.low]
    title = f"<title>{escape(safe(series.name))}</title>"
    if len(places) == 1:
        ((x, y),) = places
        return [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{series.colour}">{title}</circle>']
    if not places:
        return []
    dash = ' stroke-dasharray="6 3"' if series.dashed else ""
    drawn = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    return [
        f'<polyline points="{drawn}" fill="none" stroke="{series.colour}" stroke-width="2"{dash}>{title}</polyline>'
    ]


def axes(across: Scale, down: Scale, below: str, beside: str) -> list[str]:
    """Return both axes with their ticks and titles."""
    bottom = HEIGHT - BOTTOM
    parts = [f'<path class="axis" d="M{LEFT} {TOP}V{bottom}H{WIDTH - RIGHT}"/>']
    for value in ticks(across.low, across.high):
        x = across(value)
        parts += [f'<path class="axis" d="M{x:.1f} {bottom}v4"/>', text(x, bottom + 16, tick(value), "middle")]
    for value in ticks(down.high, down.low):
        y = down(value)
        parts += [
            f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>',
            text(LEFT - 6, y + 4, f"{value:g}", "end"),
        ]
    turned = (
        f'<text transform="translate(14 {(TOP + bottom) / 2:.0f}) rotate(-90)" text-anchor="middle">{beside}</text>'
    )
    return [*parts, text((LEFT + WIDTH) / 2, HEIGHT - 6, below, "middle"), turned]


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Return round numbers in a range."""
    span = (high - low) or 1.0
    step = 10 ** math.floor(math.log10(span / most))
    step *= next(factor for factor in (1, 2, 5, 10) if span / (step * factor) <= most)
    first = math.ceil(low / step)
    return [round(number * step, 10) for number in range(first, math.floor(high / step) + 1)]


def tick(value: float) -> str:
    """Return a tick's number as text: 1.5, 2000, 20.0k."""
    return f"{value:g}" if value < SHORTENED else count(value)


def rule(y: float, words: str) -> str:
    """Return a horizontal line with its text on the left; on the right it would be among the ends of curves."""
    label = text(LEFT + 6, y - 4, words, "start")
    return f'<path class="rule" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>{label}'


def text(x: float, y: float, words: str, anchor: str) -> str:
    """Return a text at a place; `anchor`: start, middle or end."""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(safe(words))}</text>'


def svg(parts: Sequence[str], width: float, height: float) -> str:
    """Return a drawing as wide as its place."""
    return f'<svg viewBox="0 0 {width} {height}" role="img">{"".join(parts)}</svg>'
