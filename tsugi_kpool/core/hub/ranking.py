"""Which replicas are worth a line when there is no room for all: those in trouble, silent, slow, or far behind."""

from __future__ import annotations

import math

from tsugi_kpool.core.messages import ReplicaStatus

from .status import SILENT_S

WORKING = frozenset({"loading", "evaluating", "training", "draining", "exporting"})
TROUBLE = frozenset({"failed", "lost", "dead", "refused", "left", "quarantined"})
MOST = 1e12
"""Figures may come from another machine, and be anything."""


def silent(row: ReplicaStatus) -> bool:
    """Whether a replica that should be working has not been heard."""
    return row.state == "silent" or (row.state in WORKING and row.silent_s > SILENT_S)


def interest(row: ReplicaStatus) -> tuple[float, ...]:
    """Higher for what a person should see first: trouble, silence, slowness, lag, its rate.

    Lag and rate count in powers of two: among many replicas that differ by little, lines must not come and go.
    """
    factor = _finite(row.slowness.factor) if row.slowness else 0.0
    lag, rate = (round(math.log2(1 + min(max(0.0, _finite(value)), MOST))) for value in (row.lag_s, row.tokens_per_s))
    return (row.state in TROUBLE, silent(row), round(factor), lag, -rate, -row.replica)


def _finite(value: float) -> float:
    return value if math.isfinite(value) else 0.0
