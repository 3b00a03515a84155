"""What a report tells of a run, as plain values: the page draws them, `--json` prints them. Times are seconds."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

Points = list[tuple[float, float]]
"""(seconds since the run's first record, value)."""


@dataclass
class Round:
    """One round. None is unknown, or not yet known."""

    round: int
    at_s: float
    """When it was ordered."""
    reason: str = ""
    adapters: int = 0
    generation: int = 0
    whole_s: float | None = None
    """From its order to its commit, or to its abort."""
    collective_s: float | None = None
    """The slowest member's part of that."""
    payload_bytes: int = 0
    delayed_s: float = 0.0
    aborted: bool = False


@dataclass
class SlowSpan:
    """A time in which a replica or its link was slow, and why."""

    replica: int
    from_s: float
    until_s: float | None
    """None: until the run's last record."""
    why: str


@dataclass
class Replica:
    """One replica. Seconds in steps, in waits, and of the rounds that it took part in, which overlap its steps."""

    replica: int
    host: str = ""
    steps: int = 0
    samples: int = 0
    tokens: int = 0
    tokens_per_s: float | None = None
    share: float | None = None
    """Of all committed weight, 0 to 1."""
    sent_bytes: int = 0
    computed_s: float | None = None
    waited_s: float | None = None
    shipped_s: float = 0.0
    joined_s: float | None = None
    left_s: float | None = None
    loss: Points = field(default_factory=list)
    lag_s: Points = field(default_factory=list)
    sent: Points = field(default_factory=list)
    """Bytes of rounds so far."""
    busy: list[tuple[float, float, float]] = field(default_factory=list)
    """(from, until, seconds of that in steps)."""


@dataclass
class Changed:
    """A setting of the run that is not the default. Values as YAML has them."""

    key: str
    default: str
    value: str


@dataclass
class RunFacts:
    """One run, from its directory."""

    run: str
    directory: str
    recipe: str = ""
    model: str = ""
    outcome: str = "unfinished"
    """As in summary.json; `unfinished` without one: the run goes on, or its launcher has gone."""
    stage: str = ""
    """The fleet's stage in its last status."""
    began: str = ""
    seconds: float = 0.0
    """From the first record to the last."""
    totals: dict[str, float | None] = field(default_factory=dict)
    evaluation: dict[str, dict[str, float]] = field(default_factory=dict)
    """Stage ("base", "trained") -> measure -> value."""
    evaluated: list[tuple[str, float, float]] = field(default_factory=list)
    """(stage, seconds, eval loss)."""
    measured: dict[str, Points] = field(default_factory=dict)
    """A user's metric, or the margin of pairs -> (seconds, value) of every evaluation."""
    examples: list[dict[str, str]] = field(default_factory=list)
    replicas: list[Replica] = field(default_factory=list)
    loss: Points = field(default_factory=list)
    """The fleet's smoothed training loss."""
    tokens: Points = field(default_factory=list)
    """The fleet's supervised tokens so far."""
    generations: dict[int, list[int]] = field(default_factory=dict)
    """Generation -> its members."""
    rounds: list[Round] = field(default_factory=list)
    slow: list[SlowSpan] = field(default_factory=list)
    events: list[str] = field(default_factory=list)
    """In words, rounds left out; the newest ones."""
    events_before: int = 0
    """How many events are older than those."""
    changed: list[Changed] = field(default_factory=list)
    settings_known: bool = False
    """Whether config.yaml could be read."""
    go_on: str = ""
    left_out: list[str] = field(default_factory=list)
    """What could not be read, in words."""

    @property
    def begin_s(self) -> float:
        """When the first replica joined, or made its first step: before that there is nothing to draw."""
        moments = [each.joined_s for each in self.replicas if each.joined_s is not None]
        return min([*moments, *(each.busy[0][0] for each in self.replicas if each.busy)], default=0.0)

    def total(self, name: str) -> float | None:
        """One of `totals`."""
        return self.totals.get(name)


class Curve:
    """A curve in a bounded number of points: when it is full, neighbours become their mean."""

    LIMIT = 400

    def __init__(self) -> None:
        self._points: Points = []
        self._pending: Points = []
        self._stride = 1

    def add(self, at_s: float, value: float) -> None:
        """Add a point."""
        self._pending.append((at_s, value))
        if len(self._pending) >= self._stride:
            self._points.append(_mean(self._pending))
            self._pending = []
        if len(self._points) >= 2 * self.LIMIT:
            self._points = [_mean(self._points[i : i + 2]) for i in range(0, len(self._points), 2)]
            self._stride *= 2

    @property
    def points(self) -> Points:
        """All points so far."""
        return [*self._points, *([_mean(self._pending)] if self._pending else [])]


def _mean(points: Points) -> tuple[float, float]:
    number = len(points)
    return sum(at for at, _ in points) / number, sum(value for _, value in points) / number


def plain(value: Any) -> Any:
    """Return facts for JSON, with floats in six digits: no clock and no loss has more."""
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(name): plain(each) for name, each in value.items()}
    return [plain(each) for each in value] if isinstance(value, list | tuple) else value
