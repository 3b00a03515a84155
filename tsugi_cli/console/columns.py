"""The table of replicas: its columns for each width of window, and their cells."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from tsugi_cli.record.records import number
from tsugi_kpool.core.diagnosis import Part
from tsugi_kpool.core.hub.ranking import TROUBLE, silent
from tsugi_kpool.core.messages import FleetStatus, ReplicaStatus

from .charts import CURVE, Fitted, bar, step_sparkline
from .format import ACCENT, BAD, GOOD, LABEL, NONE, WARN, count, duration, percent, safe, size, step_time

LAG_SCALE_S = 5.0
"""Least lag for which a bar is full (else it is the fleet's worst): a jitter of milliseconds is no news."""


@dataclass(frozen=True)
class _Scale:
    """What a cell needs besides its row."""

    width: int
    lag_s: float
    steps: Mapping[int, Sequence[float]] | None
    """Each replica's newest steps; None for a status that is shown once, without a past."""

    @property
    def lag_bar(self) -> int:
        return 10 if self.width >= 120 else 6 if self.width >= 100 else 3

    @property
    def lag_steps(self) -> bool:
        """Whether there is room for the lag in steps too."""
        return self.width >= 70

    def wide(self, narrow: int, wide: int) -> int:
        return wide if self.width >= 120 else narrow


@dataclass(frozen=True)
class _Column:
    title: Callable[[_Scale], str]
    cell: Callable[[ReplicaStatus, _Scale], RenderableType]
    from_width: int = 0
    """Narrowest window in which this column fits."""
    justify: Literal["left", "right"] = "right"
    past: bool = False
    """Whether the column shows the past; it gets the width that the others leave."""
    beside_past: int = 0
    """Narrowest window in which it fits beside the past."""
    least: int | None = None
    """Width of its longest figure: reserved, so that nothing moves."""


# --- what is to be pointed at -----------------------------------------------------------------------------


def _lagging(row: ReplicaStatus, scale: _Scale) -> bool:
    """Return whether a replica is far enough behind to be marked."""
    return row.lag_s >= LAG_SCALE_S and row.lag_s >= scale.lag_s / 2


def hidden_text(hidden: Sequence[ReplicaStatus], unlisted: int = 0) -> Text:
    """Return one line for the rows that are not shown; `unlisted` counts those that are not even in the status."""
    count_text = f"and {len(hidden) + unlisted:,} more"
    if not hidden:
        return Text(f"{count_text}, all less far behind", LABEL, no_wrap=True, overflow="ellipsis")
    rates = sorted(number(row.tokens_per_s) or 0.0 for row in hidden)
    lag = max(number(row.lag_s) or 0.0 for row in hidden)
    spread = f"{count(rates[0])} to {count(rates[-1])} tok/s each"
    return Text(f"{count_text}: {spread}, at most {duration(lag)} behind", LABEL, no_wrap=True, overflow="ellipsis")


# --- cells ------------------------------------------------------------------------------------------------


def _host(row: ReplicaStatus, scale: _Scale) -> Text:
    """Return the host's name; a long one without its domain."""
    room, name = scale.wide(9, 20), safe(row.host)
    if len(name) > room and not name[0].isdigit():
        name = name.partition(".")[0]
    host = Text(name or NONE)
    host.truncate(room, overflow="ellipsis")
    return host


def _state(row: ReplicaStatus, _: _Scale) -> Text:
    if silent(row):
        return Text(f"silent {f'{row.silent_s:.0f}s' if row.silent_s < 99.5 else duration(row.silent_s)}", WARN)
    if row.state == "training" and row.slowness and row.slowness.part == Part.ROUND:
        return Text("slow link", WARN)
    if row.state == "training" and row.slowness:
        return Text(f"slow {_factor(row.slowness.factor)}", WARN)
    state = Text(safe(row.state), BAD if row.state in TROUBLE else "" if row.state == "training" else LABEL)
    state.truncate(10, overflow="ellipsis")
    return state


def _factor(value: object) -> str:
    known = number(value)
    return "" if known is None else f"{known:.1f}x" if known < 99.95 else f"{min(known, 9999):.0f}x"


def _lag(row: ReplicaStatus, scale: _Scale) -> Text:
    """Return the lag: a bar relative to the fleet's worst, seconds, steps."""
    behind = _lagging(row, scale)
    share = (number(row.lag_s) or 0.0) / scale.lag_s
    figures = f" {duration(row.lag_s):>5}" + (f" {min(row.lag_steps, 99999):>5}" if scale.lag_steps else "")
    return bar(share, scale.lag_bar, WARN if behind else ACCENT).append(figures, WARN if behind else None)


def _lag_title(scale: _Scale) -> str:
    return f"{'lag':<{scale.lag_bar}}     s" + (" steps" if scale.lag_steps else "")


def _buffer(row: ReplicaStatus, scale: _Scale) -> Text:
    return bar(row.fill, scale.wide(6, 12), GOOD if row.fill >= 1 else ACCENT)


def _steps(row: ReplicaStatus, scale: _Scale) -> RenderableType:
    values = scale.steps.get(row.replica, ()) if scale.steps else ()
    return Fitted(lambda width: Text(step_sparkline(values, width), WARN if row.slowness else CURVE))


def _drift(row: ReplicaStatus) -> str:
    """Return the rate relative to the fleet's median, in per cent."""
    known = number(row.drift)
    return NONE if known is None else f"{min(known, 9.99):+.0%}"


def _round_trip(row: ReplicaStatus) -> str:
    return step_time(number(row.rtt_s) or 0.0)


def _named(title: str) -> Callable[[_Scale], str]:
    return lambda _: title


def _figure(read: Callable[[ReplicaStatus], str]) -> Callable[[ReplicaStatus, _Scale], Text]:
    return lambda row, _: Text(read(row))


_COLUMNS = (
    _Column(_named("#"), _figure(lambda row: str(row.replica))),
    _Column(_named("host"), _host, 50, "left"),
    _Column(_named("state"), _state, 60, "left", least=10),
    _Column(_named("tok/s"), _figure(lambda row: count(row.tokens_per_s)), least=5),
    _Column(_named("step"), _figure(lambda row: step_time(row.step_s)), least=5),
    _Column(_named("newest steps"), _steps, 76, "left", past=True),
    _Column(_lag_title, _lag, 38, "left"),
    _Column(_named("buffer"), _buffer, 62, "left"),
    _Column(_named("share"), _figure(lambda row: percent(row.share)), 78, beside_past=90, least=4),
    _Column(_named("drift"), _figure(_drift), 130, least=5),
    _Column(_named("samples"), _figure(lambda row: count(row.samples)), 140, least=7),
    _Column(_named("up"), _figure(lambda row: size(row.sent_bytes)), 150, least=8),
    _Column(_named("down"), _figure(lambda row: size(row.received_bytes)), 150, least=8),
    _Column(_named("rtt"), _figure(_round_trip), 160, least=5),
)


def replica_table(
    rows: Sequence[ReplicaStatus], status: FleetStatus, width: int, steps: Mapping[int, Sequence[float]] | None = None
) -> Table:
    """Return the table: one line for each of these rows, and one for the titles."""
    worst = max((number(row.lag_s) or 0.0 for row in status.replicas), default=0.0)
    scale = _Scale(width, max(worst, LAG_SCALE_S), steps)
    columns = [c for c in _COLUMNS if width >= c.from_width and (steps is None or width >= c.beside_past)]
    columns = [c for c in columns if steps is not None or not c.past]
    expand = any(c.past for c in columns)
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style=LABEL, expand=expand)
    for column in columns:
        title = Text(column.title(scale))
        ratio = 1 if column.past else None
        table.add_column(title, justify=column.justify, no_wrap=True, ratio=ratio, min_width=column.least)
    for row in rows:
        table.add_row(*(column.cell(row, scale) for column in columns))
    return table
