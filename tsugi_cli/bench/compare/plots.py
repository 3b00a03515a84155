"""Figures of a benchmark as inline SVG: curves with their spread over seeds, bars with intervals. Pure texts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from statistics import fmean

from tsugi_cli.console.format import count

from .statistics import Estimate, Point, at

COLOURS = ("#4269d0", "#efb118", "#97bbf5", "#9c6b4e", "#ff725c", "#3ca951", "#a463f2", "#6cc5b0")
WIDTH, HEIGHT = 560, 300
LEFT, RIGHT, TOP, BOTTOM = 56, 20, 10, 40
STEPS = 60
"""Points along an axis at which seeds are averaged."""
SHORTENED = 10_000
"""Numbers on an axis are written in thousands from here on."""
LETTER = 6.6
"""Width of a letter, estimated high: a page cannot measure text."""
NAME_LETTERS = 35
"""Longest name beside a bar; the table has it whole."""


@dataclass(frozen=True)
class Line:
    """One arm's curves, one for each seed."""

    name: str
    curves: Sequence[Sequence[Point]]


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
    """Return the colour of this arm, which is the same in all figures."""
    return COLOURS[number % len(COLOURS)]


def curves(lines: Sequence[Line], axis: str, title: str, target: float) -> str:
    """Return a figure of loss against an axis ("at_s" or "tokens"): the mean over seeds in the band from lowest to
    highest."""
    points = [point for line in lines for curve in line.curves for point in curve]
    right = max(getattr(point, axis) for point in points)
    low, high = min(target, *(point.loss for point in points)), max(point.loss for point in points)
    room = (high - low) * 0.05
    across = Scale(0.0, right, LEFT, WIDTH - RIGHT)
    down = Scale(high + room, low - room, TOP, HEIGHT - BOTTOM)
    parts = _axes(across, down, title, "eval loss")
    parts.append(_rule(down(target), f"target {target:.3f}"))
    for number, line in enumerate(lines):
        parts += _curve(line, axis, across, down, colour(number))
    return _svg(parts, WIDTH, HEIGHT)


def bars(rows: Sequence[tuple[str, Estimate | None, str]], title: str, mark: float | None = None) -> str:
    """Return a bar for each arm, from (name, value, text). Its whisker is the 95 % interval; `mark` is a line across
    all."""
    known = [value for _, value, _ in rows if value is not None]
    ends = [value.mean if value.high is None else min(value.high, 2 * value.mean) for value in known]
    top = max([*ends, *([mark] if mark else []), 1e-12])
    left, step = round(16 + LETTER * min(NAME_LETTERS, max(len(name) for name, _, _ in rows))), 26
    height = TOP + step * len(rows) + BOTTOM
    across = Scale(0.0, top, left, WIDTH - 130)
    parts = [_text(WIDTH / 2, height - 8, title, "middle")]
    for number, (name, value, text) in enumerate(rows):
        y = TOP + step * number
        short = name if len(name) <= NAME_LETTERS else f"{name[: NAME_LETTERS - 1]}…"
        parts.append(_text(left - 8, y + 15, short, "end"))
        if value is None:
            parts.append(_text(left + 4, y + 15, text or "–", "start"))
            continue
        end = max(across(value.mean), left + 1)
        parts.append(f'<rect x="{left}" y="{y + 3}" width="{end - left:.1f}" height="17" fill="{colour(number)}"/>')
        if value.low is not None and value.high is not None:
            low, high = across(max(0.0, value.low)), across(min(value.high, top))
            middle = y + 11.5
            parts.append(
                f'<path class="axis" d="M{low:.1f} {middle}H{high:.1f}M{low:.1f} {y + 7}v9M{high:.1f} {y + 7}v9"/>'
            )
            end = max(end, high)
        parts.append(_text(end + 6, y + 15, text, "start"))
    if mark is not None:
        parts.append(f'<path class="rule" d="M{across(mark):.1f} {TOP}V{height - BOTTOM}"/>')
    return _svg(parts, WIDTH, height)


def legend(names: Sequence[str]) -> str:
    """Return the legend of the arms' colours."""
    keys = [
        f'<span class="key"><i style="background:{colour(number)}"></i>{escape(name)}</span>'
        for number, name in enumerate(names)
    ]
    return f'<p class="legend">{"".join(keys)}</p>'


def _curve(line: Line, axis: str, across: Scale, down: Scale, stroke: str) -> list[str]:
    """Return one arm's curve, up to where its first seed ends: beyond, the mean would be of fewer seeds."""
    end = min(getattr(curve[-1], axis) for curve in line.curves)
    places = [end * step / STEPS for step in range(STEPS + 1)]
    values = [[loss for curve in line.curves if (loss := at(curve, axis, x)) is not None] for x in places]
    known = [(across(x), each) for x, each in zip(places, values, strict=True) if each]
    mean = " ".join(f"{x:.1f},{down(fmean(each)):.1f}" for x, each in known)
    lower = [f"{x:.1f},{down(min(each)):.1f}" for x, each in known]
    upper = [f"{x:.1f},{down(max(each)):.1f}" for x, each in known]
    band = f'<polygon points="{" ".join([*lower, *reversed(upper)])}" fill="{stroke}" opacity="0.18"/>'
    return [band, f'<polyline points="{mean}" fill="none" stroke="{stroke}" stroke-width="2"/>']


def _axes(across: Scale, down: Scale, below: str, beside: str) -> list[str]:
    bottom = HEIGHT - BOTTOM
    parts = [f'<path class="axis" d="M{LEFT} {TOP}V{bottom}H{WIDTH - RIGHT}"/>']
    for value in ticks(across.low, across.high):
        x = across(value)
        parts += [f'<path class="axis" d="M{x:.1f} {bottom}v4"/>', _text(x, bottom + 16, _tick(value), "middle")]
    for value in ticks(down.high, down.low):
        y = down(value)
        parts += [
            f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>',
            _text(LEFT - 6, y + 4, f"{value:g}", "end"),
        ]
    turned = (
        f'<text transform="translate(14 {(TOP + bottom) / 2:.0f}) rotate(-90)" text-anchor="middle">{beside}</text>'
    )
    return [*parts, _text((LEFT + WIDTH) / 2, HEIGHT - 6, below, "middle"), turned]


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Return round numbers in a range."""
    span = (high - low) or 1.0
    step = 10 ** math.floor(math.log10(span / most))
    step *= next(factor for factor in (1, 2, 5, 10) if span / (step * factor) <= most)
    first = math.ceil(low / step)
    return [round(number * step, 10) for number in range(first, math.floor(high / step) + 1)]


def _tick(value: float) -> str:
    """Return a tick's number as text: 1.5, 2000, 20.0k."""
    return f"{value:g}" if value < SHORTENED else count(value)


def _rule(y: float, text: str) -> str:
    """Return a horizontal line with its text on the left; on the right it would be among the ends of curves."""
    label = _text(LEFT + 6, y - 4, text, "start")
    return f'<path class="rule" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>{label}'


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _svg(parts: Sequence[str], width: float, height: float) -> str:
    return f'<svg viewBox="0 0 {width} {height}" role="img">{"".join(parts)}</svg>'
