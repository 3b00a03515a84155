"""The console's memory of a run: trends, each replica's newest steps, the last rounds and events."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from tsugi_cli.record.records import number
from tsugi_kpool.core.events import Name
from tsugi_kpool.core.messages import FleetStatus

from .charts import resample
from .events import brief_event, plain_evaluated, plain_event, plain_rounds

EVENTS_KEPT = 100
ROUNDS_KEPT = 200
STEPS_KEPT = 128
TREND_KEPT = 512


@dataclass
class Trend:
    """A curve of a whole run in at most `limit` values: when it is full, neighbours are averaged."""

    limit: int = TREND_KEPT
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


@dataclass(frozen=True)
class Round:
    """One round, from its events. Times are in seconds; None is unknown, or not yet known."""

    number: int
    reason: str = ""
    adapters: int = 0
    fired_at: float | None = None
    """When it was fired, by the clock of whoever wrote the events."""
    whole_s: float | None = None
    """From fired to committed (or aborted)."""
    collective_s: float | None = None
    """The slowest member's part of that time: from its snapshot to the reduced result."""
    payload_bytes: int = 0
    delayed_s: float = 0.0
    """Its fire delay."""
    aborted: bool = False
    reduced: int = 0
    """Members on which it has been reduced, while it is in flight."""

    @property
    def flying(self) -> bool:
        """Whether it is neither committed nor aborted."""
        return self.whole_s is None and self.collective_s is None and not self.aborted

    @property
    def seconds(self) -> float:
        """Its duration, as far as known."""
        return self.whole_s or self.collective_s or 0.0


@dataclass
class History:
    """What `view.render` needs besides the newest status."""

    loss: Trend = field(default_factory=Trend)
    rate: Trend = field(default_factory=Trend)
    """The fleet's tokens per second."""
    steps: dict[int, deque[float]] = field(default_factory=dict)
    events: deque[str] = field(default_factory=lambda: deque(maxlen=EVENTS_KEPT))
    rounds: deque[Round] = field(default_factory=lambda: deque(maxlen=ROUNDS_KEPT))
    """The rounds in the order of firing; the last one may be in flight."""
    _tokens: int = -1
    _steps: dict[int, int] = field(default_factory=dict)
    _alike: tuple[str, str, int] = ("", "", 0)
    """The event of the last line, its stage, and the number of replicas in it."""
    _folded: int | None = None
    """First round of the last line, when that is about rounds."""

    def observe(self, status: FleetStatus) -> None:
        """Take in a status; the same status twice adds nothing."""
        if status.tokens != self._tokens:
            self._trend(status)
        self._tokens = status.tokens
        present = {row.replica for row in status.replicas}
        self.steps = {r: steps for r, steps in self.steps.items() if r in present}
        for row in status.replicas:
            self.step(row.replica, row.steps, row.step_s)
        self._steps = {row.replica: row.steps for row in status.replicas}
        if status.reduced and self.rounds and self.rounds[-1].flying:
            self.rounds[-1] = replace(self.rounds[-1], reduced=status.reduced)

    def _trend(self, status: FleetStatus) -> None:
        for trend, value in ((self.loss, status.loss), (self.rate, status.tokens_per_s or None)):
            known = number(value)
            if known is not None:
                trend.add(known)

    def step(self, replica: int, steps: int, step_s: float) -> None:
        """Take in a replica's step number `steps`, with its duration."""
        if (number(step_s) or 0.0) > 0 and steps != self._steps.get(replica):
            self.steps.setdefault(replica, deque(maxlen=STEPS_KEPT)).append(step_s)
            self._steps[replica] = steps

    def record(self, event: Mapping[str, Any]) -> None:
        """Add an event. Committed rounds in a row share one line; a fired one is shown as "in flight" anyway."""
        name = event.get("event")
        if name in (Name.FIRED, Name.COMMITTED, Name.ABORTED):
            self._round(str(name), event)
        if name == Name.FIRED:
            return
        if name != Name.COMMITTED:
            self._folded = None
            self._line(str(name), event)
            return
        self._alike = ("", "", 0)
        if self._folded is None:
            self._folded = _integer(event.get("round"))
            self.events.append(plain_event(event))
        else:
            self.events[-1] = plain_rounds(self._folded, event)

    def _line(self, name: str, event: Mapping[str, Any]) -> None:
        """Add a line for an event; the same news of many replicas in a row shares one."""
        stage = str(event.get("stage"))
        before, self._alike = self._alike, (name, stage, 1)
        if name == Name.EVALUATED and before[:2] == (name, stage) and self.events:
            self._alike = (name, stage, before[2] + 1)
            self.events[-1] = plain_evaluated(self._alike[2], event)
        else:
            self.events.append(brief_event(event))

    def _round(self, name: str, event: Mapping[str, Any]) -> None:
        """Begin a round, or complete the one that this event belongs to."""
        at, which = _seconds(event.get("time")), _integer(event.get("round"))
        if name == Name.FIRED:
            adapters = event.get("adapters")
            many = len(adapters) if isinstance(adapters, list | tuple) else 0
            delayed_s = number(event.get("delayed_s")) or 0.0
            self.rounds.append(Round(which, str(event.get("reason") or ""), many, at, delayed_s=delayed_s))
            return
        known = next((i for i in reversed(range(len(self.rounds))) if self.rounds[i].number == which), None)
        begun = Round(which) if known is None else self.rounds[known]
        whole_s = max(0.0, at - begun.fired_at) if at is not None and begun.fired_at is not None else None
        collective_s = number(event.get("seconds"))
        if name == Name.ABORTED:
            ended = replace(begun, whole_s=whole_s, aborted=True)
        else:
            payload_bytes = _integer(event.get("payload_bytes"))
            ended = replace(begun, whole_s=whole_s, collective_s=collective_s or 0.0, payload_bytes=payload_bytes)
        if known is None:
            self.rounds.append(ended)
        else:
            self.rounds[known] = ended


def _integer(value: object) -> int:
    return int(number(value) or 0)


def _seconds(stamp: object) -> float | None:
    """Return an event's time in seconds, or None when it is no time."""
    try:
        return datetime.fromisoformat(str(stamp)).timestamp()
    except (ValueError, OverflowError, OSError):
        return None
