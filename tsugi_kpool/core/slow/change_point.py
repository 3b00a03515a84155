"""Change-point detection: a two-sided CUSUM with a running mean. One outlier is no change.

E. S. Page, Continuous inspection schemes, Biometrika 41 (1954); the running mean is Page and Hinkley's. The threshold
comes from Siegmund's approximation of the mean time between false alarms (Sequential Analysis, 1985, section 2.6).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

LEAST_CHANGE = math.log(1.5)
"""The smallest change of a level (natural logarithm of a duration) to be detected."""
FALSE_ALARM_STEPS = 1e6
"""Mean steps between two false alarms for which the threshold is set, if levels are normal and their spread is known.
"""
WARM_STEPS = 8
"""Number of levels that give the first mean and spread."""
MEMORY_STEPS = 512
"""Window of the running mean and spread, in levels."""
LEAST_SPREAD = 0.03
SUSPICION = 0.2
"""Above this share of the threshold nothing is learnt: what may be a new level must not move the old one's mean."""
LEAST_STEPS = 4
"""Fewest levels that can show a change."""
CLEAR = 50.0
"""Two parts of a series differ clearly when what lies between them is this many times the variance within them."""


@dataclass(frozen=True)
class ChangePoint:
    """A change of the level."""

    since_s: float
    """When the first level came that speaks for the change."""
    up: bool
    before: float
    """Mean level before the change."""


class ChangeDetector:
    """Detects changes in a series of levels, fed one by one in time order. O(1) memory and work."""

    def __init__(self) -> None:
        self._restart()

    def _restart(self) -> None:
        self._n = 0
        self._mean = self._square = 0.0
        self._sums = [0.0, 0.0]
        """The two CUSUM sums: how far levels have been above, and below, the allowance."""
        self._began_s = [0.0, 0.0]
        self._suspicious = False
        """Whether one of the sums is not 0."""

    @property
    def quiet(self) -> bool:
        """Whether nothing speaks for a change at present."""
        return not self._suspicious

    @property
    def mean(self) -> float:
        """The mean level since the newest change; 0 before any level."""
        return self._mean

    @property
    def error(self) -> float:
        """Standard error of the mean; infinite before any level."""
        return self.spread() / math.sqrt(self._n) if self._n else math.inf

    def take(self, level: float, now_s: float) -> ChangePoint | None:
        """Take in a level. Returns the change once there is enough evidence; then detection starts again."""
        if self._n < WARM_STEPS:
            self._learn(level)
            return None
        spread, away = self.spread(), level - self._mean
        allowed = LEAST_CHANGE / 2 + spread / math.sqrt(self._n)
        if self._suspicious or not -allowed <= away <= allowed:  # else no sum moves: so it is with nearly all levels
            limit = threshold(spread)
            for side, distance in enumerate((away, -away)):
                if self._add(side, distance - allowed, limit, now_s):
                    change = ChangePoint(self._began_s[side], side == 0, self._mean)
                    self._restart()
                    return change
            self._suspicious = self._sums != [0.0, 0.0]
            if max(self._sums) >= SUSPICION * limit:
                return None
        # Outliers are cut to four standard deviations: one of them must not widen the spread for hundreds of steps.
        self._learn(self._mean + max(-4 * spread, min(4 * spread, away)))
        return None

    def spread(self) -> float:
        """Return the standard deviation of the levels, enlarged while it rests on few of them."""
        known = math.sqrt(max(0.0, self._square))
        return max(LEAST_SPREAD, known * (1 + 1.5 / math.sqrt(self._n)))

    def _add(self, side: int, excess: float, limit: float, now_s: float) -> bool:
        if not self._sums[side]:
            self._began_s[side] = now_s
        # One level adds at most a LEAST_STEPS-th of the threshold, so that a single outlier cannot raise the alarm.
        self._sums[side] = max(0.0, self._sums[side] + min(excess, limit / LEAST_STEPS))
        return self._sums[side] >= limit * (1 - 1e-9)

    def _learn(self, level: float) -> None:
        self._n += 1
        weight = 1 / min(self._n, MEMORY_STEPS)
        delta = level - self._mean
        self._mean += weight * delta
        self._square = (1 - weight) * (self._square + weight * delta * delta)


def threshold(spread: float) -> float:
    """Return the alarm threshold of the CUSUM for this spread.

    Siegmund: the mean time between false alarms is about (exp(2 d b) - 2 d b - 1) / (2 d^2), d = allowance / spread
    and b = threshold / spread + 1.166.
    """
    d = LEAST_CHANGE / 2 / spread
    b = math.log1p(2 * d * d * FALSE_ALARM_STEPS) / (2 * d)
    return max(LEAST_STEPS * LEAST_CHANGE / 2, spread * (b - 1.166))


def cut(levels: Sequence[float]) -> int | None:
    """Return where a series clearly becomes two: the index at which the second part begins; None where it does not.

    The cut of least squares (D. V. Hinkley, Inference about the change-point in a sequence of random variables,
    Biometrika 57, 1970). It looks back, so it finds a change that came while a detector was learning a first mean.
    """
    total, squares = sum(levels), sum(level * level for level in levels)
    best, between, first = None, 0.0, sum(levels[:WARM_STEPS])
    for n in range(WARM_STEPS, len(levels) - LEAST_STEPS + 1):
        rest = len(levels) - n
        gain = (first / n - (total - first) / rest) ** 2 * n * rest / len(levels)
        if gain > between:
            best, between = n, gain
        first += levels[n]
    within = (squares - total * total / max(1, len(levels)) - between) / max(1, len(levels) - 2)
    return best if between >= CLEAR * max(within, LEAST_SPREAD**2) else None
