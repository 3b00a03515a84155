"""Drift: a replica's rate relative to its fleet, with a confidence interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median

import msgspec

NORMAL_95 = 1.96
MEDIAN_ERROR = 1.2533
"""Standard error of a median relative to that of a mean, for normal values: sqrt(pi / 2)."""


class Level(msgspec.Struct, frozen=True, gc=False):
    """A replica's pace: the mean logarithm of its seconds for the usual work, and its standard error."""

    mean: float
    error: float


def drift(own: Level, fleet: Level) -> tuple[float, float]:
    """Return the drift and half the width of its 95 % interval. Drift is the own rate over the fleet's median rate,
    minus 1.

    log(rate ratio) = fleet - own, because a rate is one over a duration. Its standard error is that of a difference
    of independent means, carried over by the delta method (d exp(x) = exp(x) dx). Neighbouring steps are taken
    to be independent: where they are not, the interval is too narrow.
    """
    ratio = math.exp(fleet.mean - own.mean)
    return ratio - 1, NORMAL_95 * ratio * math.hypot(own.error, fleet.error)


def middle(levels: Sequence[Level]) -> Level:
    """Return the median of the replicas' levels (at least one) and its standard error."""
    square = sum([level.error * level.error for level in levels]) / len(levels)
    return Level(median([level.mean for level in levels]), MEDIAN_ERROR * math.sqrt(square / len(levels)))


class Yardstick:
    """What each replica is compared with: the lower median of the others' levels.

    A replica is not part of its own yardstick: of two replicas the slow one would be half of it. The lower median is
    taken so that of one fast and one slow other replica the fast one counts.
    """

    def __init__(self, levels: Sequence[float]) -> None:
        ordered = sorted(levels)
        self._others = bool(ordered[1:])
        middle = (len(ordered) - 2) // 2
        self._low, self._high = ordered[middle : middle + 2] if self._others else (math.nan, math.nan)

    def exceeded(self, own: float, by: float) -> bool:
        """Return whether `own` can be `by` (more than 0) above its yardstick. A quick test: no yardstick is below
        `_low`."""
        return own - self._low >= by

    def of(self, own: float) -> float | None:
        """Return the yardstick of the replica with this level; None without others."""
        if not self._others:
            return None
        return self._high if own <= self._low else self._low
