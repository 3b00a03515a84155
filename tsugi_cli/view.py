"""What the terminal shows of a run: pure functions from the fleet's data to rich renderables and plain lines.

No clock, no file, no terminal: `console.py` owns those. Everything that came from another machine or from
the user's files (host and run names, reasons, generated text) goes through `safe`, and is put into a `Text`,
never into a markup string: it is shown, not interpreted.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.text import Text

from tsugi_kpool.core.effects import FleetStage
from tsugi_kpool.core.health import Health
from tsugi_kpool.core.messages import FleetStatus

from .charts import CURVE, Box, Fitted, bar, chart, choose, hidden_text, replica_table, resample, sparkline
from .events import plain_event, plain_rounds
from .words import (
    ACCENT,
    BAD,
    GOOD,
    LABEL,
    NONE,
    WARN,
    clock,
    count,
    duration,
    fixed,
    labelled,
    number,
    one_line,
    percent,
    safe,
    spread,
)

EVENTS_KEPT = 100
STEPS_KEPT = 64
LOSSES_KEPT = 512


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
            self.events[-1] = plain_rounds(self._folded, event)


# --- the live console -------------------------------------------------------------------------------------


def _header(status: FleetStatus, width: int) -> list[Text]:
    name = one_line(("tsugi", f"bold {ACCENT}"), "  ", (safe(status.run), "bold"))
    stage = one_line(safe(status.stage), (f"  {clock(status.elapsed_s)}", LABEL))
    how = ", ".join(safe(text) for text in (status.pool_text, status.trigger_text) if text)
    return [spread(name, stage, width), one_line((how, LABEL))]


def _waiting(status: FleetStatus) -> str:
    """What holds the run up before it trains, else nothing."""
    if status.stage != FleetStage.GATHERING:
        return ""
    return f"waiting for replicas: {len(status.replicas)} of {status.expected} joined"


def _progress(status: FleetStatus, width: int) -> Text:
    if _waiting(status):
        return one_line((_waiting(status), "bold"))
    done, total = status.samples_done, status.samples_total
    share = done / total if total > 0 else 0.0
    figures = f"  {done:,}/{total:,} samples" if width >= 50 else ""
    eta = f"  eta {clock(status.eta_s)}" if width >= 30 else ""
    text = one_line(figures, (f"  {share:.0%}", "bold"), (eta, LABEL))
    return one_line(bar(share, max(4, width - text.cell_len)), text)


def _rounds(status: FleetStatus) -> Text:
    """Rounds by reason, what was aborted, what is in flight."""
    most_first = sorted(status.rounds.items(), key=lambda pair: -pair[1])
    fired = ", ".join(f"{n} {safe(reason)}" for reason, n in most_first if n)
    flying = f"adapters {', '.join(map(str, status.firing))}"
    return labelled(
        ("rounds", fired or "none yet"),
        ("aborted", Text(str(status.aborted), WARN if status.aborted else "")),
        ("in flight", flying if status.firing else NONE),
    )


def _fleet(status: FleetStatus, loss: Text, width: int) -> Text:
    goodput = number(status.goodput)
    style = "" if goodput is None or 0.5 <= goodput < 0.9 else GOOD if goodput >= 0.9 else WARN
    return labelled(
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
    lines = zip(labels, chart(values, width - 9, rows), strict=True)
    return [one_line(("loss", LABEL)), *(one_line((f"{label:>7}  ", LABEL), (line, CURVE)) for label, line in lines)]


def _below(history: History, width: int, room: int) -> list[Text]:
    """What fills the lines under the figures: the loss's chart when there is plenty, and the last events."""
    lines: list[Text] = []
    if room >= 16 and width >= 60 and len(history.loss.values) >= 4:
        lines += [Text(), *_loss_chart(history, width, min(8, room // 3))]
    left = room - len(lines) - 2
    if history.events and left > 0:
        lines += [Text(), one_line(("events", LABEL))]
        lines += [one_line((text[:8], LABEL), text[8:]) for text in list(history.events)[-left:]]  # the time is dim
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
    shown, hidden = choose(status.replicas, room)
    rows: list[RenderableType] = [replica_table(shown, status, width, history.steps)]
    if hidden:
        rows.append(hidden_text(hidden))
    below = _below(history, inner, spare - len(shown) - bool(hidden))
    return Box(Padding(Group(*above, *rows, *figures, *below), (0, 1)), width, height)


TABLE_FRAME = 8
"""Lines that `table` takes at most besides its rows, in a window of 80 columns."""


def table(status: FleetStatus, rows: int | None = None) -> RenderableType:
    """The fleet in a few lines and the replicas in a table, for `tsugi sideband status`; at most so many rows."""
    figures = labelled(
        ("loss", fixed(status.loss, 3)),
        ("fleet", f"{count(status.tokens_per_s)} tok/s"),
        ("goodput", percent(status.goodput)),
        ("version", str(status.version)),
    )
    shown, hidden = choose(status.replicas, len(status.replicas) if rows is None else rows)
    # A new Text: in a narrow window it wraps.
    lines = [] if _waiting(status) else [Text().append_text(figures)]
    return Group(
        Fitted(lambda width: _title(status, width)),
        *lines,
        *_health(status),
        Text(),
        Fitted(lambda width: replica_table(shown, status, width)),
        *([hidden_text(hidden)] if hidden else []),
    )


def _health(status: FleetStatus) -> list[Text]:
    """What speaks against the fleet's health; nothing when nothing does."""
    if status.health == Health.HEALTHY:
        return []
    style = BAD if status.health == Health.NO_QUORUM else WARN
    reasons = "; ".join(safe(reason) for reason in status.health_reasons)
    return [Text.assemble((safe(status.health), style), "  ", reasons)]


def _title(status: FleetStatus, width: int) -> Text:
    """Whose status this is and how far it has come; a long name of the run gives way."""
    how_far = _waiting(status) or f"{status.samples_done:,}/{status.samples_total:,} samples"
    stage = labelled(("", safe(status.stage)), ("", how_far))
    name = Text(safe(status.run), "bold")
    name.truncate(max(8, width - stage.cell_len - 2), overflow="ellipsis")
    return Text.assemble(name, "  ", stage)


def plain_line(status: FleetStatus) -> str:
    """The fleet in one line of ASCII, for pipes and logs; what is unknown is left out."""
    if _waiting(status):
        return f"  {_waiting(status)}"
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
