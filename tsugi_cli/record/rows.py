"""Ranking of rows: which replicas of a large fleet are shown. Trouble, silence, slowness and lag come first."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tsugi_kpool.core.hub.status import SILENT_S
from tsugi_kpool.core.messages import ReplicaStatus

from .records import number

WORKING = frozenset({"loading", "evaluating", "training", "draining", "exporting"})
TROUBLE = frozenset({"failed", "lost", "dead", "refused", "left", "quarantined"})


def silent(row: ReplicaStatus) -> bool:
    """Return whether a replica that should be working has not been heard."""
    return row.state == "silent" or (row.state in WORKING and row.silent_s > SILENT_S)


def _interest(row: ReplicaStatus) -> tuple[float, ...]:
    """Return the sort key of a replica: trouble, silence, slowness, lag, rate.

    Lag and rate count in powers of two: where many replicas differ by little, lines must not come and go.
    """
    factor = number(row.slowness.factor) or 0.0 if row.slowness else 0.0
    lag, rate = (round(math.log2(1 + min(max(0.0, number(v) or 0.0), 1e12))) for v in (row.lag_s, row.tokens_per_s))
    return (row.state in TROUBLE, silent(row), round(factor), lag, -rate, -row.replica)


def choose(rows: Sequence[ReplicaStatus], room: int) -> tuple[list[ReplicaStatus], list[ReplicaStatus]]:
    """Return (shown, hidden) rows. The shown ones stay in the order of their ids, so that lines do not jump."""
    if len(rows) <= room:
        return list(rows), []
    ranked = sorted(rows, key=_interest, reverse=True)
    return sorted(ranked[:room], key=lambda row: row.replica), ranked[room:]
