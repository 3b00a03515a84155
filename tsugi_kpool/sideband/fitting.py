"""A status that fits into a frame, however large the fleet is."""

from __future__ import annotations

import msgspec

from tsugi_kpool.core.messages import MAX_FRAME_BYTES, FleetStatus, ReplicaStatus
from tsugi_kpool.core.status import SILENT_S

HEAD_BYTES = 4_096
"""Room in a status for all that is not a row of a replica."""


def fitting(status: FleetStatus) -> FleetStatus:
    """A status that fits into a frame: of a large fleet the replicas that are silent, slow, or lag most."""
    sizes = {row.replica: len(msgspec.msgpack.encode(row)) for row in status.replicas}
    left = MAX_FRAME_BYTES - HEAD_BYTES
    if sum(sizes.values()) <= left:
        return status
    shown = []
    for row in sorted(status.replicas, key=_urgency, reverse=True):
        left -= sizes[row.replica]
        if left < 0:
            break
        shown.append(row)
    return msgspec.structs.replace(status, replicas=tuple(sorted(shown, key=lambda row: row.replica)))


def _urgency(row: ReplicaStatus) -> tuple[bool, bool, float]:
    return row.silent_s > SILENT_S, row.slowness is not None, row.lag_s
