"""Which replicas of a large fleet are worth a line: those in trouble, silent, slow, or far behind."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tsugi_kpool.core.hub.status import SILENT_S
from tsugi_kpool.core.messages import ReplicaStatus

from .records import number

WORKING = frozenset({"loading", "evaluating", "training", "draining", "exporting"})
TROUBLE = frozenset({"failed", "lost", "dead", "refused", "left", "quarantined"})


def silent(row: ReplicaStatus) -> bool:
    """Whether a replica that should be working has not been heard."""
    return row.state == "silent" or (row.state in WORKING and row.silent_s > SILENT_S)


def _interest(row: ReplicaStatus) -> tuple[float, ...]:
    """What makes a replica worth a line when there is no room for all: trouble, silence, slowness, lag, its rate.

    Lag and rate count in powers of two: among many replicas that differ by little, lines must not come and go.
    """
    factor = number(row.slowness.factor) or 0.0 if row.slowness else 0.0
    lag, rate = (round(math.log2(1 + min(max(0.0, number(v) or 0.0), 1e12))) for v in (row.lag_s, row.tokens_per_s))
    return (row.state in TROUBLE, silent(row), round(factor), lag, -rate, -row.replica)


def choose(rows: Sequence[ReplicaStatus], room: int) -> tuple[list[ReplicaStatus], list[ReplicaStatus]]:
    """(shown, hidden); the shown ones stay in the order of their ids, so that lines do not jump about."""
    if len(rows) <= room:
        return list(rows), []
    ranked = sorted(rows, key=_interest, reverse=True)
    return sorted(ranked[:room], key=lambda row: row.replica), ranked[room:]
