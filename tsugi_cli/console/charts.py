"""Charts in text: bars, sparklines, curves, and the boxes that hold them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.segment import Segment
from rich.text import Text

from tsugi_cli.record.records import number

from .format import ACCENT, LABEL

CURVE = "dim cyan"
BLOCKS = " ▁▂▃▄▅▆▇█"


def bar(share: object, width: int, style: str = ACCENT) -> Text:
    """Return a bar: a thick line on a thin one, which reads without colour, too."""
    halves = round(max(0.0, min(1.0, number(share) or 0.0)) * width * 2)
    full, half = divmod(halves, 2)
    return Text.assemble(("━" * full + "╸" * half, style), ("─" * (width - full - half), LABEL))


def resample(values: Sequence[float], width: int) -> list[float]:
    """Return at most `width` values: means of neighbours where there are more."""
    if len(values) <= width or width < 1:
        return list(values[: max(0, width)])
    edges = [i * len(values) // width for i in range(width + 1)]
    return [sum(values[a:b]) / (b - a) for a, b in pairwise(edges)]


def chart(
    values: Iterable[float], width: int, rows: int, low: float | None = None, high: float | None = None
) -> list[str]:
    """Return `rows` lines from the top, as columns of eighth blocks; the lowest value still shows one eighth."""
    points = resample([v for v in values if math.isfinite(v)], width)
    if not points:
        return [""] * rows
    low = min(points) if low is None else low
    high = max(points) if high is None else high
    span = high - low
    shares = [max(0.0, min(1.0, (p - low) / span)) if span > 0 else 0.5 for p in points]
    levels = [1 + round(share * (rows * 8 - 1)) for share in shares]
    return ["".join(BLOCKS[max(0, min(8, v - row * 8))] for v in levels) for row in reversed(range(rows))]


def sparkline(values: Iterable[float], width: int, high: float | None = None) -> str:
    """Return a chart of one line: from the lowest value to the highest, or from 0 to `high`."""
    return chart(values, width, 1, None if high is None else 0.0, high)[0]


def step_sparkline(values: Iterable[float], width: int) -> str:
    """Return a sparkline of the newest steps, from 0 to twice their median: steady is half height, a stall stands
    out."""
    newest = [v for v in values if math.isfinite(v)][-width:]
    if not newest:
        return ""
    return sparkline(newest, width, max(2 * sorted(newest)[len(newest) // 2], 1e-9))


@dataclass(frozen=True)
class Fitted:
    """Content that is drawn once its width is known."""

    draw: Callable[[int], RenderableType]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield self.draw(options.max_width)


@dataclass(frozen=True)
class Box:
    """Cuts its content to width x height."""

    content: RenderableType
    width: int
    height: int

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = max(1, min(self.width, options.max_width))
        lines = console.render_lines(self.content, options.update(width=width, height=None), pad=False)
        for line in lines[: self.height]:
            yield from line
            yield Segment.line()
