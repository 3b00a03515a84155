"""The fleet's status as it was a moment ago: of a thousand replicas it costs as much as many decisions."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from tsugi_kpool.core.messages import FleetStatus

WATCHED = 20.0
"""A status stands for so many times as long as it took to make: to look on takes a twentieth of the hub's time."""


class Glance:
    """Asked under the hub's lock, or by the hub's own thread.

    Args:
        make: Makes the status as of a time of the hub's monotonic clock.
    """

    def __init__(self, make: Callable[[float], FleetStatus]) -> None:
        self._make = make
        self._shown: FleetStatus | None = None
        self._shown_s, self._took_s = -math.inf, 0.0

    def at(self, now_s: float) -> FleetStatus:
        """As it is now; of a large fleet, or for many who ask, as it was a moment ago."""
        if self._shown is None or now_s - self._shown_s >= WATCHED * self._took_s:
            began_s = time.perf_counter()
            self._shown, self._shown_s = self._make(now_s), now_s
            self._took_s = time.perf_counter() - began_s
        return self._shown
