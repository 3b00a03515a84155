"""The status that the hub answers with: made no more often than it can afford, and cut to what fits into a frame."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import msgspec

from tsugi_kpool.core.hub.ranking import interest
from tsugi_kpool.core.messages import MAX_FRAME_BYTES, FleetStatus

HEAD_BYTES = 4_096
"""Room in a status for all that is not a row of a replica."""
WATCHED = 20.0
"""A status stands for so many times as long as it took to make: to look on takes a twentieth of the hub's time."""


def fitting(status: FleetStatus) -> FleetStatus:
    """A status that fits into a frame: of a large fleet the replicas that a person should see first."""
    sizes = {row.replica: len(msgspec.msgpack.encode(row)) for row in status.replicas}
    left = MAX_FRAME_BYTES - HEAD_BYTES
    if sum(sizes.values()) <= left:
        return status
    shown = []
    for row in sorted(status.replicas, key=interest, reverse=True):
        left -= sizes[row.replica]
        if left < 0:
            break
        shown.append(row)
    return msgspec.structs.replace(status, replicas=tuple(sorted(shown, key=lambda row: row.replica)))


class StatusCache:
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
