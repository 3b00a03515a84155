"""The pace of one replica: its newest steps, scaled to the usual work, when they changed, and whether they jitter."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Collection, Sequence
from statistics import median

import msgspec

from tsugi_kpool.core.diagnosis import Parts
from tsugi_kpool.core.messages import Beat

from .change_point import ChangeDetector, ChangePoint
from .drift import Level
from .work import Workload

KEPT = 64
"""Marks kept: the newest steps, or beats that report several."""
RECENT = 8
"""The present pace is the median of so many newest marks."""
BURST = 8
"""Waits come in bursts, once a round or a lease. Each mark carries the mean wait of so many marks."""
SEVERAL_ROUNDS = 32
"""Marks that hold several rounds' waits: a round comes every `kpool.max_steps` steps at the latest, 10 by default. Of
8 marks one alone would wait, which counts as none.
"""
SETTLING = 2
"""The first steps are left out: devices and allocators warm up in them."""
SHORTEST_S, LONGEST_S = 1e-9, 1e9
"""Steps outside of these bounds are ignored: a member may report any number, and log and exp must stay finite."""
JITTER_RATIO = 2.0
JITTER_SHARE = 0.1
ENOUGH = 16
"""Fewest steps from which heavy tails can be judged."""


class Mark(msgspec.Struct, frozen=True, gc=False):
    """The mean step between two beats with news, scaled to the usual work."""

    at_s: float
    level: float
    """Natural logarithm of the seconds of all parts."""
    parts: Parts


class Pace:
    """Measures the pace; feed it every beat that reports a new step."""

    def __init__(self, incarnation: str) -> None:
        self.incarnation = incarnation
        self.marks: deque[Mark] = deque(maxlen=KEPT)
        self.since_change = 0
        """Marks since the newest change or, without one, since the beginning; at most KEPT of them are still stored.
        """
        self._detector = ChangeDetector()
        self._beat: Beat | None = None
        self._heard_s = 0.0
        self._pair: tuple[float, float] | None = None
        self._left_out = 0
        self._waits: deque[float] = deque(maxlen=BURST)
        self._sync_waits: deque[float] = deque(maxlen=SEVERAL_ROUNDS)
        self._unwaiting = SEVERAL_ROUNDS
        """How many of the newest marks in a row had no wait."""
        self._levels: deque[float] = deque(maxlen=RECENT)
        """Levels of `recent()`."""
        self._mean: Level | None = None
        self._level: float | None = None
        self._parts: Parts | None = None
        self._jitters: bool | None = None
        """Cached results of the properties and of `jitters` until the next mark: the hub asks once a second."""

    def take(self, beat: Beat, workload: Workload, now_s: float) -> ChangePoint | None:
        """Take in a beat. Returns the change point when the pace has changed."""
        before, self._beat, self._heard_s = self._beat, beat, now_s
        if before is None or beat.steps <= before.steps:
            return None
        work, parts = _difference(before, beat)
        if work <= 0 or parts.step <= 0 or not SHORTEST_S <= parts.total <= LONGEST_S:
            return None
        pair, self._pair = self._pair, (work, parts.step)
        if pair is not None and work != pair[0]:
            workload.learn(pair, self._pair)
        if self._left_out < SETTLING:
            self._left_out += 1
            return None
        return self._add(self._smoothed(parts, workload.scale(work)), now_s)

    def _smoothed(self, parts: Parts, scale: float) -> Parts:
        """Return the parts of a step at the usual work, with waits averaged over the newest marks.

        The longest wait is cut to the second longest: a hub that froze once has slowed nobody. Rounds are waited for
        less often than data: of what is held up lately and for longer the larger counts. Only the step itself is
        scaled, because waits do not depend on the work in it.
        """
        self._waits.append(parts.data_wait)
        self._sync_waits.append(parts.sync_wait)
        self._unwaiting = 0 if parts.data_wait or parts.sync_wait else self._unwaiting + 1
        if scale == 1.0 and self._unwaiting >= SEVERAL_ROUNDS:
            return parts
        held = self._sync_waits
        lately_s = _mean_cut(list(held)[-BURST:])
        sync_wait_s = max(lately_s, _mean_cut(held)) if len(held) > BURST else lately_s
        return Parts(parts.step * scale, _mean_cut(self._waits), sync_wait_s, parts.outside)

    def _add(self, parts: Parts, now_s: float) -> ChangePoint | None:
        level = math.log(parts.total)
        self.marks.append(Mark(now_s, level, parts))
        self._levels.append(level)
        self.since_change += 1
        change = self._detector.take(level, now_s)
        self._mean = self._level = self._parts = self._jitters = None
        if change is not None:
            self.since_change = sum(mark.at_s >= change.since_s for mark in self.marks)
            self._levels = deque([mark.level for mark in self.recent()], RECENT)
        return change

    @property
    def quiet(self) -> bool:
        """Whether nothing speaks for a change at present."""
        return self._detector.quiet

    @property
    def mean(self) -> Level:
        """The mean level since the newest change."""
        if self._mean is None:
            self._mean = Level(self._detector.mean, self._detector.error)
        return self._mean

    @property
    def level(self) -> float:
        """The present pace: the median of the newest levels."""
        if self._level is None:
            self._level = _middle(self._levels)
        return self._level

    @property
    def parts(self) -> Parts:
        """The present parts of its time: the medians of the newest marks."""
        if self._parts is None:
            self._parts = usual(self.recent())
        return self._parts

    def trained_at(self, at_s: float) -> float:
        """Return the replica's own `trained_s` at this moment of the hub's clock. Both clocks are taken to run
        equally fast."""
        return (self._beat.trained_s if self._beat is not None else 0.0) - (self._heard_s - at_s)

    def steady(self) -> list[Mark]:
        """Return the marks since the newest change."""
        return list(self.marks)[-min(self.since_change, len(self.marks)) :] if self.since_change else []

    def recent(self) -> list[Mark]:
        """Return the newest RECENT of the marks since the newest change."""
        return self.steady()[-RECENT:]

    def jitters(self) -> bool:
        """Return whether many steps take far longer than the median: heavy tails, not a slow device."""
        if self._jitters is None:
            self._jitters = self._heavy_tails()
        return self._jitters

    def _heavy_tails(self) -> bool:
        levels = [mark.level for mark in self.steady()]
        if len(levels) < ENOUGH:
            return False
        limit = median(levels) + math.log(JITTER_RATIO)
        return sum(level > limit for level in levels) > JITTER_SHARE * len(levels)


def usual(marks: Sequence[Mark]) -> Parts:
    """Return the median of each part; zeros for no marks."""
    if not marks:
        return Parts(0.0, 0.0, 0.0, 0.0)
    parts = [mark.parts for mark in marks]
    return Parts(
        median(each.step for each in parts),
        median(each.data_wait for each in parts),
        median(each.sync_wait for each in parts),
        median(each.outside for each in parts),
    )


def _middle(levels: Collection[float]) -> float:
    """Return the median as `statistics.median` does, in a third of the time: this runs after every step of every
    replica."""
    ordered, half = sorted(levels), len(levels) // 2
    return ordered[half] if len(levels) % 2 else (ordered[half - 1] + ordered[half]) / 2


def _difference(before: Beat, beat: Beat) -> tuple[float, Parts]:
    """Return (work, parts) of the mean step between two beats. Lost beats do no harm: counters are totals."""
    steps = beat.steps - before.steps
    busy, wait, sync_wait = (
        beat.busy_s - before.busy_s,
        beat.wait_s - before.wait_s,
        beat.sync_wait_s - before.sync_wait_s,
    )
    outside = max(0.0, beat.stepped_s - before.stepped_s - busy - wait - sync_wait)
    work = (beat.worked - before.worked) or (beat.tokens - before.tokens)
    return work / steps, Parts(busy / steps, wait / steps, sync_wait / steps, outside / steps)


def _mean_cut(waits: Collection[float]) -> float:
    """Return the mean of these waits, with the longest cut to the second longest; the mean of one wait is that
    wait."""
    if not any(waits):
        return 0.0
    longest = sorted(waits)[-2:]
    return (sum(waits) - longest[-1] + longest[0]) / len(waits)
