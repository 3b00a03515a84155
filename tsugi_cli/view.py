"""What the terminal shows: pure functions from the fleet's data to rich renderables and plain lines.

No clock, no file, no terminal: `console.py` owns those. Everything that came from another machine or from
the user's files (host and run names, reasons, generated text) goes through `safe`, and is put into a `Text`,
never into a markup string: it is shown, not interpreted.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.padding import Padding
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from tsugi_kpool.core.messages import FleetStatus, ReplicaStatus

ACCENT = "cyan"
GOOD = "green"
WARN = "yellow"
BAD = "red"
LABEL = "dim"
CURVE = "dim cyan"
# A lag bar is full at the fleet's worst lag, but never below this: a jitter of milliseconds is no news.
LAG_SCALE_S = 5.0
# Beats come every second or so; a working replica that says nothing for this long deserves the user's eye.
SILENT_S = 5.0
WORKING = frozenset({"loading", "evaluating", "training", "draining", "exporting"})
TROUBLE = frozenset({"failed", "lost", "dead", "refused", "left"})
ROUND_EVENTS = frozenset({"fired", "committed"})
"""Events too frequent for a line each: the console folds them into one, plain mode leaves them out."""
NONE = "–"
BLOCKS = " ▁▂▃▄▅▆▇█"
REPORTED_REPLICAS = 16
EXAMPLE_CHARS = 240
EVENTS_KEPT = 100
STEPS_KEPT = 64
LOSSES_KEPT = 512


# --- words and numbers ------------------------------------------------------------------------------------


def safe(text: object, keep: str = "") -> str:
    """Replace what a terminal could obey (controls, escapes, bidi, zero-width) by visible escapes."""
    return "".join(c if c.isprintable() or c in keep else repr(c)[1:-1] for c in str(text))


def number(value: object) -> float | None:
    """A finite number, or None for everything else that a summary or an event may hold."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def fixed(value: object, digits: int) -> str:
    """A number with so many decimals."""
    known = number(value)
    return NONE if known is None else f"{known:.{digits}f}"


def count(value: object) -> str:
    """A number in at most five characters: 3.4, 231, 58.1k, 1.2M."""
    known = number(value)
    if known is None:
        return NONE
    if abs(known) < 9999.5:
        return f"{known:.1f}" if 0 < abs(known) < 9.95 and not known.is_integer() else f"{known:.0f}"
    power = min(4, int(math.log10(abs(known) * 1.0005)) // 3)
    scaled = known / 1000**power
    return f"{scaled:.{int(abs(scaled) < 99.95)}f}{'kMGT'[power - 1]}"


def size(value: object) -> str:
    """A number of bytes: 512 B, 1.2 MB."""
    known = number(value)
    if known is None:
        return NONE
    if known < 1000:
        return f"{known:.0f} B"
    power = min(4, int(math.log10(known * 1.0005)) // 3)
    return f"{known / 1000**power:.1f} {'kMGT'[power - 1]}B"


def percent(value: object, digits: int = 0) -> str:
    """A share as a percentage."""
    known = number(value)
    return NONE if known is None else f"{known:.{digits}%}"


def clock(value: object) -> str:
    """Seconds as 0:07, 1:02:03 or 2d 3:04:05."""
    known = number(value)
    if known is None:
        return NONE
    minutes, second = divmod(max(0, round(known)), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if not hours:
        return f"{minute}:{second:02}"
    return f"{f'{days}d ' if days else ''}{hour}:{minute:02}:{second:02}"


def duration(value: object) -> str:
    """Seconds in at most five characters: 0.4s, 123s, 59m, 3.4h."""
    known = number(value)
    if known is None:
        return NONE
    if known < 99.95:
        return f"{known:.1f}s"
    if known < 599.5:
        return f"{known:.0f}s"
    return f"{known / 60:.0f}m" if known < 5970 else f"{known / 3600:.1f}h"


def step_time(value: float) -> str:
    """A micro-step's duration; milliseconds where tenths of a second say too little."""
    known = number(value)
    if not known:
        return NONE
    if known < 0.0995:
        return f"{known * 1000:.0f}ms"
    return f"{known:.2f}s" if known < 9.995 else duration(known)


# --- small pictures ---------------------------------------------------------------------------------------


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
class _Fitted:
    """Draws itself when the width is known."""

    draw: Callable[[int], RenderableType]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield self.draw(options.max_width)


# --- events -----------------------------------------------------------------------------------------------

_TEXTS = {
    "joined": "replica {replica} joined from {host}, pid {pid}",
    "epoch": "epoch {epoch}: replicas {members}",
    "fired": "round {round} fired ({reason}): adapters {adapters}, {pooled} micro-steps",
    "committed": "round {round} committed in {seconds}, {payload_bytes}",
    "aborted": "round {round} aborted: {reason}",
    "evaluated": "replica {replica} has evaluated its share, {stage}",
    "drained": "no more data: every replica has ended its last micro-step",
    "finished": "finished at version {version}",
    "failed": "replica {replica} failed: {reason}",
    "interrupted": "interrupted: what is in flight still lands",
    "note": "{text}",
}


class _Fields(dict[str, str]):
    def __missing__(self, key: str) -> str:
        return "?"


def _field(key: str, value: object) -> str:
    """One value of an event in words."""
    if key == "seconds":
        return duration(value)
    if key == "payload_bytes":
        return size(value)
    if isinstance(value, list | tuple):
        return f"{len(value)} of them" if len(value) > 8 else ", ".join(safe(v) for v in value)
    return safe(f"{value:.4g}" if isinstance(value, float) else value)


def event_text(event: Mapping[str, Any]) -> str:
    """A record of events.jsonl in words, without its time."""
    name = str(event.get("event", "?"))
    fields = _Fields({k: _field(k, v) for k, v in event.items() if k not in ("time", "event")})
    if name in _TEXTS:
        return _TEXTS[name].format_map(fields)
    return " ".join([safe(name), *(f"{safe(k)}={v}" for k, v in fields.items())])


def event_time(event: Mapping[str, Any]) -> str:
    """The clock's part of the record's time, in the time zone that the record was written in."""
    _, _, time = safe(event.get("time", "")).partition("T")
    return time[:8] if len(time) >= 8 else "--:--:--"


def plain_event(event: Mapping[str, Any]) -> str:
    """A record of events.jsonl as one line."""
    return f"{event_time(event)}  {event_text(event)}"


# --- what render needs over time --------------------------------------------------------------------------


@dataclass
class Trend:
    """A whole run in at most `limit` values: when full, neighbours are averaged, and each is worth two."""

    limit: int = LOSSES_KEPT
    values: list[float] = field(default_factory=list)
    _stride: int = 1
    _pending: list[float] = field(default_factory=list)

    def add(self, value: float) -> None:
        """Append a value."""
        self._pending.append(value)
        if len(self._pending) < self._stride:
            return
        self.values.append(sum(self._pending) / len(self._pending))
        self._pending.clear()
        if len(self.values) >= self.limit:
            self.values = resample(self.values, self.limit // 2)
            self._stride *= 2


@dataclass
class History:
    """What the console remembers: the run's loss, each replica's newest micro-steps, and the last events."""

    loss: Trend = field(default_factory=Trend)
    steps: dict[int, deque[float]] = field(default_factory=dict)
    events: deque[str] = field(default_factory=lambda: deque(maxlen=EVENTS_KEPT))
    _tokens: int = -1
    _micro_steps: dict[int, int] = field(default_factory=dict)
    _folded: int | None = None
    """First round of the line that ends the events, when that line tells of rounds."""

    def observe(self, status: FleetStatus) -> None:
        """Take what is new; the same status twice adds nothing."""
        loss = number(status.loss)
        if loss is not None and status.tokens != self._tokens:
            self.loss.add(loss)
        self._tokens = status.tokens
        present = {row.replica for row in status.replicas}
        self.steps = {r: steps for r, steps in self.steps.items() if r in present}
        for row in status.replicas:
            if row.micro_step_s > 0 and row.micro_steps != self._micro_steps.get(row.replica):
                self.steps.setdefault(row.replica, deque(maxlen=STEPS_KEPT)).append(row.micro_step_s)
        self._micro_steps = {row.replica: row.micro_steps for row in status.replicas}

    def record(self, event: Mapping[str, Any]) -> None:
        """Add an event. Committed rounds in a row share one line; a fired one shows as "in flight" anyway."""
        name = event.get("event")
        if name == "fired":
            return
        if name != "committed":
            self._folded = None
            self.events.append(plain_event(event))
            return
        if self._folded is None:
            self._folded = int(number(event.get("round")) or 0)
            self.events.append(plain_event(event))
        else:
            rounds = f"rounds {self._folded} to {_field('round', event.get('round'))} committed, the last in"
            cost = f"{duration(event.get('seconds'))}, {size(event.get('payload_bytes'))}"
            self.events[-1] = f"{event_time(event)}  {rounds} {cost}"


# --- the table of replicas --------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Scale:
    """What a cell needs besides its own row."""

    width: int
    lag_s: float
    history: History

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
    return row.state in WORKING and row.silent_s >= SILENT_S


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
        return Text(
            f"silent {f'{row.silent_s:.0f}s' if row.silent_s < 99.5 else duration(row.silent_s)}", WARN
        )
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
    values = scale.history.steps.get(row.replica, ())
    return _Fitted(lambda width: Text(step_sparkline(values, width), CURVE))


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


def _replica_table(rows: Sequence[ReplicaStatus], scale: _Scale) -> Table:
    """One line for each row, and one for the titles."""
    columns = [c for c in _COLUMNS if scale.width >= c.from_width]
    expand = any(c.ratio for c in columns)
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style=LABEL, expand=expand)
    for column in columns:
        title = Text(column.title(scale))
        table.add_column(title, justify=column.justify, no_wrap=True, ratio=column.ratio)
    for row in rows:
        table.add_row(*(column.cell(row, scale) for column in columns))
    return table


def _scale(status: FleetStatus, history: History, width: int) -> _Scale:
    worst = max((number(row.lag_s) or 0.0 for row in status.replicas), default=0.0)
    return _Scale(width, max(worst, LAG_SCALE_S), history)


def _interest(row: ReplicaStatus) -> tuple[bool, bool, float, float]:
    """What makes a replica worth a line when there is no room for all: trouble, silence, lag, slowness."""
    return (row.state in TROUBLE, _silent(row), number(row.lag_s) or 0.0, -(number(row.tokens_per_s) or 0.0))


def _choose(rows: Sequence[ReplicaStatus], room: int) -> tuple[list[ReplicaStatus], list[ReplicaStatus]]:
    """(shown, hidden); the shown ones stay in the order of their ids, so that lines do not jump about."""
    if len(rows) <= room:
        return list(rows), []
    ranked = sorted(rows, key=_interest, reverse=True)
    return sorted(ranked[:room], key=lambda row: row.replica), ranked[room:]


def _hidden_text(hidden: Sequence[ReplicaStatus]) -> Text:
    """What the lines that are not shown would have said."""
    rates = sorted(number(row.tokens_per_s) or 0.0 for row in hidden)
    lag = max(number(row.lag_s) or 0.0 for row in hidden)
    spread = f"{count(rates[0])} to {count(rates[-1])} tok/s each"
    return _line((f"and {len(hidden)} more: {spread}, at most {duration(lag)} behind", LABEL))


# --- the live console -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Box:
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


def _line(*parts: tuple[str, str] | Text | str) -> Text:
    """Parts of text in one line that never wraps."""
    return Text.assemble(*parts, no_wrap=True, overflow="ellipsis")


def _spread(left: Text, right: Text, width: int) -> Text:
    """One line: left, a gap, right; the left part gives way."""
    left = left.copy()
    left.truncate(max(0, width - right.cell_len - 2), overflow="ellipsis")
    return _line(left, " " * max(2, width - left.cell_len - right.cell_len), right)


def _pairs(*pairs: tuple[str, str | Text] | None) -> Text:
    """Dim labels before their values, two blanks between pairs; None is left out."""
    line = _line()
    for label, value in filter(None, pairs):
        line.append("   " if line.plain else "")
        line.append(f"{label} ", LABEL)
        line.append_text(value) if isinstance(value, Text) else line.append(value)
    return line


def _header(status: FleetStatus, width: int) -> list[Text]:
    name = _line(("tsugi", f"bold {ACCENT}"), "  ", (safe(status.run), "bold"))
    stage = _line(safe(status.stage), (f"  {clock(status.elapsed_s)}", LABEL))
    how = ", ".join(safe(text) for text in (status.pool_text, status.trigger_text) if text)
    return [_spread(name, stage, width), _line((how, LABEL))]


def _progress(status: FleetStatus, width: int) -> Text:
    done, total = status.samples_done, status.samples_total
    share = done / total if total > 0 else 0.0
    figures = f"  {done:,}/{total:,} samples" if width >= 50 else ""
    eta = f"  eta {clock(status.eta_s)}" if width >= 30 else ""
    text = _line(figures, (f"  {share:.0%}", "bold"), (eta, LABEL))
    return _line(bar(share, max(4, width - text.cell_len)), text)


def _rounds(status: FleetStatus) -> Text:
    """Rounds by reason, what was aborted, what is in flight."""
    most_first = sorted(status.rounds.items(), key=lambda pair: -pair[1])
    fired = ", ".join(f"{n} {safe(reason)}" for reason, n in most_first if n)
    flying = f"adapters {', '.join(map(str, status.firing))}"
    return _pairs(
        ("rounds", fired or "none yet"),
        ("aborted", Text(str(status.aborted), WARN if status.aborted else "")),
        ("in flight", flying if status.firing else NONE),
    )


def _fleet(status: FleetStatus, loss: Text, width: int) -> Text:
    goodput = number(status.goodput)
    style = "" if goodput is None or 0.5 <= goodput < 0.9 else GOOD if goodput >= 0.9 else WARN
    return _pairs(
        ("loss", loss),
        ("fleet", f"{count(status.tokens_per_s)} tok/s"),
        ("goodput", Text(percent(status.goodput), style)),
        ("version", str(status.version)),
        ("tokens", count(status.tokens)) if width >= 100 else None,
    )


def _loss(status: FleetStatus, history: History, width: int) -> Text:
    line = sparkline(history.loss.values, width)
    return Text.assemble((fixed(status.loss, 3), "bold"), (f" {line}" if line else "", ACCENT))


def _loss_chart(history: History, width: int, rows: int) -> list[Text]:
    """The run's loss over several lines, with the ends of its scale."""
    values = resample(history.loss.values, width - 9)
    labels = [""] * rows
    labels[0], labels[-1] = fixed(max(values), 3), fixed(min(values), 3)
    lines = chart(values, width - 9, rows)
    body = zip(labels, lines, strict=True)
    return [
        _line(("loss", LABEL)),
        *(_line((f"{label:>7}  ", LABEL), (line, CURVE)) for label, line in body),
    ]


def _event_line(text: str) -> Text:
    """The time dim, the event as it is."""
    return _line((text[:8], LABEL), text[8:])


def _below(history: History, width: int, room: int) -> list[Text]:
    """What fills the lines under the figures: the loss's chart when there is plenty, and the last events."""
    lines: list[Text] = []
    if room >= 16 and width >= 60 and len(history.loss.values) >= 4:
        lines += [Text(), *_loss_chart(history, width, min(8, room // 3))]
    left = room - len(lines) - 2
    if history.events and left > 0:
        lines += [Text(), _line(("events", LABEL))]
        lines += [_event_line(text) for text in list(history.events)[-left:]]
    return lines


def render(status: FleetStatus, history: History, width: int, height: int) -> RenderableType:
    """The live console in a window of width x height: what fits is shown, what does not is counted."""
    inner = max(1, width - 2)
    airy = height >= 16
    gap = [Text()] if airy else []
    above: list[RenderableType] = [*_header(status, inner), *gap, _progress(status, inner), *gap]
    loss = _loss(status, history, inner // 5 if inner >= 78 else inner // 10)
    figures: list[RenderableType] = [*gap, _fleet(status, loss, width), _rounds(status)]
    spare = height - len(above) - len(figures) - 1  # 1: the table's titles
    kept = min(5, len(history.events) + 2) if airy and history.events else 0
    room = max(1, spare - kept)
    if len(status.replicas) > room:
        room = max(1, room - 1)
    shown, hidden = _choose(status.replicas, room)
    rows: list[RenderableType] = [_replica_table(shown, _scale(status, history, width))]
    if not status.replicas:
        rows = [_line(("waiting for replicas to join", LABEL)), Text()]
    if hidden:
        rows.append(_hidden_text(hidden))
    below = _below(history, inner, spare - len(shown) - bool(hidden))
    return _Box(Padding(Group(*above, *rows, *figures, *below), (0, 1)), width, height)


def table(status: FleetStatus) -> RenderableType:
    """The fleet in one line and the replicas in a table, for `tsugi sideband status`."""
    history = History()
    summary = _pairs(
        (safe(status.run), safe(status.stage)),
        ("samples", f"{status.samples_done:,}/{status.samples_total:,}"),
        ("version", str(status.version)),
        ("loss", fixed(status.loss, 3)),
        ("fleet", f"{count(status.tokens_per_s)} tok/s"),
        ("goodput", percent(status.goodput)),
    )
    return Group(
        summary,
        Text(),
        # Steps over time are not known to somebody who asks once: those columns begin at 100 and are empty.
        _Fitted(lambda width: _replica_table(status.replicas, _scale(status, history, width))),
    )


def plain_line(status: FleetStatus) -> str:
    """The fleet in one line of ASCII, for pipes and logs; what is unknown is left out."""
    done, total = str(status.samples_done), str(status.samples_total)
    share = status.samples_done / status.samples_total if status.samples_total > 0 else 0.0
    slowest = max(status.replicas, key=lambda row: number(row.lag_s) or 0.0, default=None)
    parts = [
        f"{done:>{len(total) + 2}}/{total} samples {share:>4.0%}",
        safe(status.stage) if status.stage != "training" else "",
        f"loss {status.loss:.3f}" if number(status.loss) is not None else "",
        f"{count(status.tokens_per_s)} tok/s" if number(status.tokens_per_s) else "",
        f"goodput {percent(status.goodput)}" if number(status.goodput) is not None else "",
        f"round {status.version}" if status.version else "",
        f"lag {duration(slowest.lag_s)}(r{slowest.replica})" if slowest and number(slowest.lag_s) else "",
        f"eta {clock(status.eta_s)}" if number(status.eta_s) is not None else "",
    ]
    return "  ".join(filter(None, parts))


# --- the report -------------------------------------------------------------------------------------------


def _grid(*titles: tuple[str, Literal["left", "right"]]) -> Table:
    grid = Table(box=None, padding=(0, 3, 0, 0), pad_edge=False, header_style=LABEL)
    for title, justify in titles:
        grid.add_column(Text(title), justify=justify)
    return grid


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _change(name: str, base: float | None, trained: float | None) -> Text:
    """An arrow and how far: the loss in per cent of itself, shares in points."""
    if base is None or trained is None:
        return Text("")
    if base == trained:
        return Text("= unchanged", LABEL)
    better = (trained < base) == (name == "loss")
    arrow = "▲" if trained > base else "▼"
    points = f"{abs(trained - base) * 100:.1f} points"
    amount = f"{abs(trained - base) / base:.0%}" if name == "loss" and base > 0 else points
    return Text(f"{arrow} {amount}", GOOD if better else WARN)


def _evaluation(summary: Mapping[str, Any]) -> Table | None:
    """Base against trained, one line for each metric; the loss first."""
    evaluation = _mapping(summary.get("evaluation"))
    base, trained = _mapping(evaluation.get("base")), _mapping(evaluation.get("trained"))
    names = [n for n in dict.fromkeys([*base, *trained]) if number(base.get(n, trained.get(n))) is not None]
    if not names:
        return None
    grid = _grid(("", "left"), ("base", "right"), ("trained", "right"), ("", "left"))
    for name in sorted(names, key=lambda n: n != "loss"):
        before, after = number(base.get(name)), number(trained.get(name))
        loss = name == "loss"
        cells = [fixed(v, 3) if loss else percent(v, 1) for v in (before, after)]
        label = "eval loss" if loss else safe(name)
        grid.add_row(Text(label), Text(cells[0], LABEL), Text(cells[1], "bold"), _change(name, before, after))
    return grid


def _clip(text: object) -> str:
    """An example's text in one piece; base models like to go on for ever."""
    shown = safe(text, keep="\n").strip()
    return shown if len(shown) <= EXAMPLE_CHARS else f"{shown[:EXAMPLE_CHARS].rstrip()} …"


def _example(example: Mapping[str, Any]) -> Table:
    """Answers stand one under the other, so that they can be compared character by character."""
    grid = Table(box=None, show_header=False, padding=(0, 2, 0, 0), pad_edge=False)
    grid.add_column(no_wrap=True, min_width=8)
    grid.add_column(overflow="fold")
    exact = "trained" in example and example.get("trained") == example.get("expected")
    styles = {"request": "bold", "expected": "", "base": LABEL, "trained": GOOD if exact else ""}
    for name, style in styles.items():
        if example.get(name) is not None:
            grid.add_row(Text(name, LABEL), Text(_clip(example[name]) or "(nothing)", style))
    return grid


def _examples(summary: Mapping[str, Any]) -> list[RenderableType]:
    found = [_mapping(e) for e in summary.get("examples") or () if _mapping(e)]
    return [part for example in found for part in (_example(example), Text())]


def _totals(summary: Mapping[str, Any]) -> Text | None:
    rounds = summary.get("rounds")
    rounds = sum(rounds.values()) if isinstance(rounds, Mapping) else rounds
    known: list[tuple[str, object, str]] = [
        ("wall time", summary.get("wall_s"), clock(summary.get("wall_s"))),
        ("samples", summary.get("samples"), count(summary.get("samples"))),
        ("tokens", summary.get("tokens"), count(summary.get("tokens"))),
        ("rounds", rounds, count(rounds)),
        ("fleet", summary.get("tokens_per_s"), f"{count(summary.get('tokens_per_s'))} tok/s"),
        ("goodput", summary.get("goodput"), percent(summary.get("goodput"))),
    ]
    pairs = [(label, text) for label, value, text in known if number(value) is not None]
    return Text(no_wrap=False).append_text(_pairs(*pairs)) if pairs else None


def _contributions(summary: Mapping[str, Any]) -> list[RenderableType]:
    """What each replica gave; of many, the slowest."""
    rows = [_mapping(row) for row in summary.get("replicas") or () if _mapping(row)]
    if not rows:
        return []
    slowest = sorted(rows, key=lambda row: number(row.get("tokens_per_s")) or 0.0)[:REPORTED_REPLICAS]
    shown = [row for row in rows if any(row is one for one in slowest)]
    titles = ("replica", "samples", "tokens", "tok/s", "share")
    grid = _grid(*((title, "right") for title in titles), ("", "left"))
    for row in shown:
        cells = [safe(row.get("replica", "?"))]
        cells += [count(row.get(key)) for key in ("samples", "tokens", "tokens_per_s")]
        grid.add_row(*map(Text, cells), Text(percent(row.get("share"))), bar(row.get("share"), 20))
    more = len(rows) - len(shown)
    return [grid, *([Text(f"and {more} faster ones", LABEL)] if more else []), Text()]


def _loading(summary: Mapping[str, Any]) -> list[RenderableType]:
    """Where the adapter is and three lines that load it."""
    if not summary.get("adapter"):
        return []
    path = safe(summary["adapter"])
    model = safe(repr(summary["model"])) if summary.get("model") else "..."
    code = (
        "from peft import PeftModel\n"
        f"base = AutoModelForCausalLM.from_pretrained({model})  # the model that was trained\n"
        f"model = PeftModel.from_pretrained(base, {safe(repr(str(summary['adapter'])))})"
    )
    where = Text.assemble(("adapter  ", LABEL), (path, "bold"), overflow="fold")
    return [where, Text(), Padding(Text(code, ACCENT, overflow="fold"), (0, 0, 0, 2))]


def report(summary: Mapping[str, Any]) -> RenderableType:
    """The end screen. Keys that are missing leave their part out."""
    outcome = safe(summary.get("outcome") or "finished")
    style = GOOD if outcome == "finished" else WARN if outcome == "interrupted" else BAD
    name = safe(summary.get("run") or "")
    title = _line(("tsugi", f"bold {ACCENT}"), "  ", (f"{name}  " if name else "", "bold"), (outcome, style))
    parts: list[RenderableType] = [title, Text()]
    for part in (_evaluation(summary), *_examples_and_totals(summary)):
        parts += [part, Text()] if part is not None else []
    return Padding(Group(*parts, *_contributions(summary), *_loading(summary)), (1, 1))


def _examples_and_totals(summary: Mapping[str, Any]) -> list[RenderableType | None]:
    examples = _examples(summary)
    return [Group(*examples[:-1]) if examples else None, _totals(summary)]
