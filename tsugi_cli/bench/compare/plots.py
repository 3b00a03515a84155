"""Figures of a benchmark as inline SVG: curves with their spread over seeds, bars with intervals. Pure texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from tsugi_cli.bench.spec import METHODS
from tsugi_cli.pages.figures import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Scale, axes, colour, rule, svg, text

from .statistics import Estimate, Point, at

BARS_WIDTH = 560
"""Names, bars and figures side by side."""
STEPS = 60
"""Points along an axis at which seeds are averaged."""
LETTER = 6.6
"""Width of a letter, estimated high: a page cannot measure text."""
NAME_LETTERS = 35
"""Longest name beside a bar; the table has it whole."""


@dataclass(frozen=True)
class Line:
    """One arm's curves, one for each seed."""

    name: str
    curves: Sequence[Sequence[Point]]


def colours(names: Sequence[str]) -> dict[str, str]:
    """Return each arm's colour. A method has the same one in every benchmark; other arms have those after them."""
    others = [name for name in names if name not in METHODS]
    known = {name: colour(number) for number, name in enumerate((*METHODS, *others))}
    return {name: known[name] for name in names}


def curves(lines: Sequence[Line], axis: str, title: str, target: float) -> str:
    """Return a figure of loss against an axis ("at_s" or "tokens"): the mean over seeds in the band from lowest to
    highest."""
    points = [point for line in lines for curve in line.curves for point in curve]
    right = max(getattr(point, axis) for point in points)
    low, high = min(target, *(point.loss for point in points)), max(point.loss for point in points)
    room = (high - low) * 0.05
    across = Scale(0.0, right, LEFT, WIDTH - RIGHT)
    down = Scale(high + room, low - room, TOP, HEIGHT - BOTTOM)
    parts = axes(across, down, title, "eval loss")
    parts.append(rule(down(target), f"target {target:.3f}"))
    colour_of = colours([line.name for line in lines])
    for line in lines:
        parts += _curve(line, axis, across, down, colour_of[line.name])
    return svg(parts, WIDTH, HEIGHT)


def bars(rows: Sequence[tuple[str, Estimate | None, str]], title: str, mark: float | None = None) -> str:
    """Return a bar for each arm, from (name, value, text). Its whisker is the 95 % interval; `mark` is a line across
    all."""
    known = [value for _, value, _ in rows if value is not None]
    ends = [value.mean if value.high is None else min(value.high, 2 * value.mean) for value in known]
    top = max([*ends, *([mark] if mark else []), 1e-12])
    left, step = round(16 + LETTER * min(NAME_LETTERS, max(len(name) for name, _, _ in rows))), 26
    height = TOP + step * len(rows) + BOTTOM
    across = Scale(0.0, top, left, BARS_WIDTH - 130)
    parts = [text(BARS_WIDTH / 2, height - 8, title, "middle")]
    colour_of = colours([name for name, _, _ in rows])
    for number, (name, value, words) in enumerate(rows):
        y = TOP + step * number
        short = name if len(name) <= NAME_LETTERS else f"{name[: NAME_LETTERS - 1]}…"
        parts.append(text(left - 8, y + 15, short, "end"))
        if value is None:
            parts.append(text(left + 4, y + 15, words or "–", "start"))
            continue
        end = max(across(value.mean), left + 1)
        parts.append(f'<rect x="{left}" y="{y + 3}" width="{end - left:.1f}" height="17" fill="{colour_of[name]}"/>')
        if value.low is not None and value.high is not None:
            low, high = across(max(0.0, value.low)), across(min(value.high, top))
            middle = y + 11.5
            parts.append(
                f'<path class="axis" d="M{low:.1f} {middle}H{high:.1f}M{low:.1f} {y + 7}v9M{high:.1f} {y + 7}v9"/>'
            )
            end = max(end, high)
        parts.append(text(end + 6, y + 15, words, "start"))
    if mark is not None:
        parts.append(f'<path class="rule" d="M{across(mark):.1f} {TOP}V{height - BOTTOM}"/>')
    return svg(parts, BARS_WIDTH, height)


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
