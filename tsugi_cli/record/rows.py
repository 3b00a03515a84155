"""The rows of a large fleet that are shown: those that rank first, in the order of their ids."""

from __future__ import annotations

from collections.abc import Sequence

from tsugi_kpool.core.hub.ranking import interest
from tsugi_kpool.core.messages import ReplicaStatus


def choose(rows: Sequence[ReplicaStatus], room: int) -> tuple[list[ReplicaStatus], list[ReplicaStatus]]:
    """Return (shown, hidden) rows. The shown ones stay in the order of their ids, so that lines do not jump."""
    if len(rows) <= room:
        return list(rows), []
    ranked = sorted(rows, key=interest, reverse=True)
    return sorted(ranked[:room], key=lambda row: row.replica), ranked[room:]
