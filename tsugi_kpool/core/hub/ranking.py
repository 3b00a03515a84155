"""Ranking of replicas where there is no room for all. Trouble, silence, slowness and lag come first."""

from __future__ import annotations

import math

from tsugi_kpool.core.messages import ReplicaStatus

from .status import SILENT_S

WORKING = frozenset({"loading", "evaluating", "training", "draining", "exporting"})
TROUBLE = frozenset({"failed", "lost", "dead", "refused", "left", "quarantined"})
MOST = 1e12
"""Figures may come from another machine, and be anything."""


def silent(row: ReplicaStatus) -> bool:
    """Return whether a replica that should be working has not been heard."""
    return row.state == "silent" or (row.state in WORKING and row.silent_s > SILENT_S)


def interest(row: ReplicaStatus) -> tuple[float, ...]:
    """Return the sort key of a replica, the highest first: trouble, silence, slowness, lag, rate.

    Lag and rate count in powers of two: where many replicas differ by little, lines must not come and go.
    """
    factor = _finite(row.slowness.factor) if row.slowness else 0.0
    lag, rate = (round(math.log2(1 + min(max(0.0, _finite(value)), MOST))) for value in (row.lag_s, row.tokens_per_s))
    return (row.state in TROUBLE, silent(row), round(factor), lag, -rate, -row.replica)


def _finite(value: float) -> float:
    return value if math.isfinite(value) else 0.0
