"""The frontier of a fleet: when its furthest replica first reached each step count. Lag is measured against it."""

from __future__ import annotations

from bisect import bisect_right

FRONTIER_KEPT = 1 << 16
"""Step counts that are remembered at most."""


class Frontier:
    """When the furthest replica first reached each step count: the yardstick of lag.

    Counts of long ago are kept every other one only, and a jump is one entry however far it goes: a member may say
    any number.
    """

    def __init__(self) -> None:
        self._counts: list[int] = []
        self._reached_s: list[float] = []

    def advance(self, steps: int, now_s: float) -> None:
        """Some replica stands at `steps` now."""
        if steps > (self._counts[-1] if self._counts else 0):
            self._counts.append(steps)
            self._reached_s.append(now_s)
            if len(self._counts) > FRONTIER_KEPT:
                old = FRONTIER_KEPT // 2
                self._counts[:old] = self._counts[1:old:2]
                self._reached_s[:old] = self._reached_s[1:old:2]

    def lag(self, steps: int, now_s: float) -> tuple[int, float]:
        """Steps and seconds since the furthest replica stood where this one stands (0, 0.0 for itself)."""
        behind = (self._counts[-1] if self._counts else 0) - steps
        if behind <= 0:
            return 0, 0.0
        return behind, now_s - self._reached_s[bisect_right(self._counts, steps)]
