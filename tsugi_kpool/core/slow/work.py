"""Scales step durations to the usual amount of work, so that micro-batches of any size can be compared."""

from __future__ import annotations

import math

PRIOR_WEIGHT = 0.5
"""Weight of the prior, which is that duration grows in proportion to work."""
LARGEST_STEP = 1.5
"""Larger differences of log duration are not caused by work, and are ignored."""
MEMORY = 0.999


class Workload:
    """The dependence of durations on work, learnt from all replicas: duration ~ work ** elasticity.

    Large micro-batches on a busy device have elasticity 1. Tiny ones, whose cost is overhead, have 0. The elasticity
    is the least-squares slope over differences between a replica's neighbouring steps, so the replica's own speed
    drops out.
    """

    def __init__(self) -> None:
        self.usual: float | None = None
        """Work of a usual step: that of the first step heard of."""
        self._cross = self._square = PRIOR_WEIGHT

    @property
    def elasticity(self) -> float:
        """The exponent, 0 to 1."""
        return max(0.0, min(1.0, self._cross / self._square))

    def learn(self, before: tuple[float, float], now: tuple[float, float]) -> None:
        """Learn from two neighbouring steps of one replica, each as (work, seconds)."""
        if now[0] == before[0]:
            return
        work, seconds = math.log(now[0] / before[0]), math.log(now[1] / before[1])
        if abs(seconds) > LARGEST_STEP:
            return
        self._cross = PRIOR_WEIGHT * (1 - MEMORY) + MEMORY * self._cross + work * seconds
        self._square = PRIOR_WEIGHT * (1 - MEMORY) + MEMORY * self._square + work * work

    def scale(self, work: float) -> float:
        """Return the factor that turns the duration of a step with this work into that of the usual work."""
        if self.usual is None:
            self.usual = work
        if work == self.usual:
            return 1.0
        return float((self.usual / work) ** self.elasticity)
