"""The status in the hub's answers: made no more often than the hub can afford, and cut to fit into a frame."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import msgspec

from tsugi_kpool.core.hub.ranking import interest
from tsugi_kpool.core.messages import MAX_FRAME_BYTES, FleetStatus

HEAD_BYTES = 4_096
"""Bytes reserved in a status for everything but the replicas' rows."""
WATCHED = 20.0
"""A status is reused for this many times the time it took to make: observers cost a twentieth of the hub's time."""


def fitting(status: FleetStatus) -> FleetStatus:
    """Return a status that fits into a frame: of a large fleet the replicas that a person should see first."""
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
    """Caches the newest status. Asked under the hub's lock, or by the hub's own thread.

    Args:
        make: Makes the status as of a time of the hub's monotonic clock.
    """

    def __init__(self, make: Callable[[float], FleetStatus]) -> None:
        self._make = make
        self._shown: FleetStatus | None = None
        self._shown_s, self._took_s = -math.inf, 0.0

    def at(self, now_s: float) -> FleetStatus:
        """Return the status; for a large fleet, or many askers, it may be a moment old."""
        if self._shown is None or now_s - self._shown_s >= WATCHED * self._took_s:
            began_s = time.perf_counter()
            self._shown, self._shown_s = self._make(now_s), now_s
            self._took_s = time.perf_counter() - began_s
        return self._shown
