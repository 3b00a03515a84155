"""Figures as pictures: bars, sparklines, charts, and the table of replicas that is made of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from tsugi_kpool.core.messages import FleetStatus, ReplicaStatus
from tsugi_kpool.core.status import SILENT_S

from .words import (
    ACCENT,
    BAD,
    GOOD,
    LABEL,
    NONE,
    WARN,
    count,
    duration,
    number,
    one_line,
    percent,
    safe,
    size,
    step_time,
)

CURVE = "dim cyan"
BLOCKS = " ▁▂▃▄▅▆▇█"
# A lag bar is full at the fleet's worst lag, but never below this: a jitter of milliseconds is no news.
LAG_SCALE_S = 5.0
WORKING = frozenset({"loading", "evaluating", "training", "draining", "exporting"})
TROUBLE = frozenset({"failed", "lost", "dead", "refused", "left"})


def bar(share: object, width: int, style: str = ACCENT) -> Text:
    """A thick line on a thin one: it reads without colour too."""
    halves = round(max(0.0, min(1.0, number(share) or 0.0)) * width * 2)
    full, half = divmod(halves, 2)
    return Text.assemble(("━" * full + "╸" * half, style), ("─" * (width - full - half), LABEL))


def resample(values: Sequence[float], width: int) -> list[float]:
    """At most `width` values: means of neighbours where there are more."""
    if len(values) <= width or width < 1:
        return list(values[: max(0, width)])
    edges = [i * len(values) // width for i in range(width + 1)]
    return [sum(values[a:b]) / (b - a) for a, b in pairwise(edges)]


def chart(
    values: Iterable[float], width: int, rows: int, low: float | None = None, high: float | None = None
) -> list[str]:
    """Columns of eighth blocks, `rows` lines from the top; the lowest value still shows one eighth."""
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
    """A chart of one line: from the lowest value to the highest, or from 0 to `high`."""
    return chart(values, width, 1, None if high is None else 0.0, high)[0]


def step_sparkline(values: Iterable[float], width: int) -> str:
    """The newest micro-steps, from 0 to twice their median: steady is half height, a stall stands out."""
    newest = [v for v in values if math.isfinite(v)][-width:]
    if not newest:
        return ""
    return sparkline(newest, width, max(2 * sorted(newest)[len(newest) // 2], 1e-9))


@dataclass(frozen=True)
class Fitted:
    """Draws itself when the width is known."""

    draw: Callable[[int], RenderableType]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield self.draw(options.max_width)


@dataclass(frozen=True)
class Box:
    """Cuts what it holds to width x height, whatever the content says."""

    content: RenderableType
    width: int
    height: int

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = max(1, min(self.width, options.max_width))
        lines = console.render_lines(self.content, options.update(width=width, height=None), pad=False)
        for line in lines[: self.height]:
            yield from line
            yield Segment.line()


# --- the table of replicas --------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Scale:
    """What a cell needs besides its own row."""

    width: int
    lag_s: float
    steps: Mapping[int, Sequence[float]] | None
    """Each replica's newest micro-steps; None for somebody who looks once, and so knows no past."""

    def wide(self, narrow: int, wide: int) -> int:
        return wide if self.width >= 120 else narrow


@dataclass(frozen=True)
class _Column:
    title: Callable[[_Scale], str]
    cell: Callable[[ReplicaStatus, _Scale], RenderableType]
    from_width: int = 0
    """The narrowest window that has room for this column."""
    justify: Literal["left", "right"] = "right"
    ratio: int | None = None
    """Set for the column that takes what the others leave."""


def _lagging(row: ReplicaStatus, scale: _Scale) -> bool:
    """Whether a replica is behind enough to be pointed at."""
    return row.lag_s >= LAG_SCALE_S and row.lag_s >= scale.lag_s / 2


def _silent(row: ReplicaStatus) -> bool:
    return row.state == "silent" or (row.state in WORKING and row.silent_s > SILENT_S)


def _host(row: ReplicaStatus, scale: _Scale) -> Text:
    """The host's name; where it is long, without its domain."""
    room, name = scale.wide(9, 20), safe(row.host)
    if len(name) > room and not name[0].isdigit():
        name = name.partition(".")[0]
    host = Text(name or NONE)
    host.truncate(room, overflow="ellipsis")
    return host


def _state(row: ReplicaStatus, _: _Scale) -> Text:
    if _silent(row):
        return Text(f"silent {f'{row.silent_s:.0f}s' if row.silent_s < 99.5 else duration(row.silent_s)}", WARN)
    state = Text(safe(row.state), BAD if row.state in TROUBLE else "" if row.state == "training" else LABEL)
    state.truncate(10, overflow="ellipsis")
    return state


def _lag(row: ReplicaStatus, scale: _Scale) -> Text:
    """Bar on the scale of the fleet's worst, seconds, micro-steps."""
    behind = _lagging(row, scale)
    share = (number(row.lag_s) or 0.0) / scale.lag_s
    figures = f" {duration(row.lag_s):>5} {min(row.lag_micro, 99999):>5}"
    return bar(share, scale.wide(3, 10), WARN if behind else ACCENT).append(figures, WARN if behind else None)


def _buffer(row: ReplicaStatus, scale: _Scale) -> Text:
    return bar(row.fill, scale.wide(6, 12), GOOD if row.fill >= 1 else ACCENT)


def _steps(row: ReplicaStatus, scale: _Scale) -> RenderableType:
    values = scale.steps.get(row.replica, ()) if scale.steps else ()
    return Fitted(lambda width: Text(step_sparkline(values, width), CURVE))


def _named(title: str) -> Callable[[_Scale], str]:
    return lambda _: title


def _figure(read: Callable[[ReplicaStatus], str]) -> Callable[[ReplicaStatus, _Scale], Text]:
    return lambda row, _: Text(read(row))


_COLUMNS = (
    _Column(_named("#"), _figure(lambda row: str(row.replica))),
    _Column(_named("host"), _host, 50, "left"),
    _Column(_named("rank"), _figure(lambda row: str(row.rank) if row.rank >= 0 else NONE), 80),
    _Column(_named("state"), _state, 72, "left"),
    _Column(_named("tok/s"), _figure(lambda row: count(row.tokens_per_s))),
    _Column(_named("step"), _figure(lambda row: step_time(row.micro_step_s))),
    _Column(_named("newest steps"), _steps, 100, "left", 1),
    _Column(lambda scale: f"{'lag':<{scale.wide(3, 10)}}     s steps", _lag, 38, "left"),
    _Column(_named("buffer"), _buffer, 60, "left"),
    _Column(_named("share"), _figure(lambda row: percent(row.share)), 78),
    _Column(_named("micro-steps"), _figure(lambda row: count(row.micro_steps)), 150),
    _Column(_named("samples"), _figure(lambda row: count(row.samples)), 130),
    _Column(_named("sent"), _figure(lambda row: size(row.sent_bytes)), 140),
)


def replica_table(
    rows: Sequence[ReplicaStatus], status: FleetStatus, width: int, steps: Mapping[int, Sequence[float]] | None = None
) -> Table:
    """One line for each of these rows of the fleet, and one for the titles."""
    worst = max((number(row.lag_s) or 0.0 for row in status.replicas), default=0.0)
    scale = _Scale(width, max(worst, LAG_SCALE_S), steps)
    columns = [c for c in _COLUMNS if width >= c.from_width and (steps is not None or not c.ratio)]
    expand = any(c.ratio for c in columns)
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style=LABEL, expand=expand)
    for column in columns:
        title = Text(column.title(scale))
        table.add_column(title, justify=column.justify, no_wrap=True, ratio=column.ratio)
    for row in rows:
        table.add_row(*(column.cell(row, scale) for column in columns))
    return table


def _interest(row: ReplicaStatus) -> tuple[bool, bool, float, float]:
    """What makes a replica worth a line when there is no room for all: trouble, silence, lag, slowness."""
    return (row.state in TROUBLE, _silent(row), number(row.lag_s) or 0.0, -(number(row.tokens_per_s) or 0.0))


def choose(rows: Sequence[ReplicaStatus], room: int) -> tuple[list[ReplicaStatus], list[ReplicaStatus]]:
    """(shown, hidden); the shown ones stay in the order of their ids, so that lines do not jump about."""
    if len(rows) <= room:
        return list(rows), []
    ranked = sorted(rows, key=_interest, reverse=True)
    return sorted(ranked[:room], key=lambda row: row.replica), ranked[room:]


def hidden_text(hidden: Sequence[ReplicaStatus]) -> Text:
    """What the lines that are not shown would have said."""
    rates = sorted(number(row.tokens_per_s) or 0.0 for row in hidden)
    lag = max(number(row.lag_s) or 0.0 for row in hidden)
    spread = f"{count(rates[0])} to {count(rates[-1])} tok/s each"
    return one_line((f"and {len(hidden)} more: {spread}, at most {duration(lag)} behind", LABEL))
