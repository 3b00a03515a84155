"""Whether a fleet is well: a pure function from what its status shows to a verdict with its reasons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from .effects import FleetStage
from .messages import ReplicaStatus
from .refusals import Kind

SLOW_RATIO = 2.0
"""A replica at less than this part of the fastest one's own rate is called slow: below 2, neighbours on a shared
machine look slow (the two replicas of the default recipe, on a core each, differ by up to 1.3)."""
MIN_STEPS = 3
"""A rate over fewer micro-steps says nothing."""
LOST = frozenset({"silent", "failed", "lost", "dead", "left"})
"""States of a replica that takes no part any more, though its work is not done."""
HARMLESS = frozenset({Kind.KEY, Kind.HANDSHAKE, Kind.OLD})
"""Refusals that say nothing of the fleet: strangers at the door, and late copies of what is known."""
NAMED = 3
"""Replicas named in one reason; the others are counted."""


class Health(StrEnum):
    """The verdicts, from best to worst."""

    HEALTHY = "healthy"
    DEGRADED = "degraded"
    NO_QUORUM = "no quorum"


@dataclass(frozen=True)
class Verdict:
    """How the fleet is, and what speaks against it."""

    health: Health
    reasons: tuple[str, ...] = ()


def judge(
    stage: str,
    replicas: Sequence[ReplicaStatus],
    min_replicas: int,
    failure: str | None = None,
    refused: Mapping[str, int] | None = None,
) -> Verdict:
    """Judge a fleet.

    Args:
        stage: Stage of the run. Before all replicas have joined nothing is lost; after the end nobody is missed.
        replicas: All of them, not only those that fit into a frame.
        min_replicas: A run that trains with fewer live replicas has no quorum.
        failure: Why the run has failed, if it has.
        refused: What the sideband has not taken in, by kind; what came from a holder of a key is trouble.
    """
    running = stage in (FleetStage.TRAINING, FleetStage.DRAINING)
    lost = [row for row in replicas if row.state in LOST] if running or stage == FleetStage.FAILED else []
    live = len(replicas) - len(lost)
    reasons = [f"the run has failed: {failure or 'no reason is known'}"] if stage == FleetStage.FAILED else []
    if running and live < min_replicas:
        quorum = f"{live} of at least {min_replicas} replicas are live"
        return Verdict(Health.NO_QUORUM, (quorum, *reasons, *_lost(lost)))
    reasons += [*_lost(lost), *(_slow(replicas) if stage == FleetStage.TRAINING else ())]
    told = sum(times for kind, times in (refused or {}).items() if kind not in HARMLESS)
    if told:
        reasons.append(f"{told} frames of holders of a key were refused")
    return Verdict(Health.DEGRADED if reasons else Health.HEALTHY, tuple(reasons))


def _lost(rows: Sequence[ReplicaStatus]) -> list[str]:
    states = {row.state for row in rows}
    return [_several(rows, states.pop() if len(states) == 1 else "lost")] if rows else []


def _slow(rows: Sequence[ReplicaStatus]) -> list[str]:
    """Replicas that the phase's diagnosis calls slow; where it has none, those far below the fastest one's rate."""
    named = sorted((row for row in rows if row.slowness), key=_factor, reverse=True)
    if named:
        cause = f"{_factor(named[0]):.1f}x, cause: {named[0].slowness.cause if named[0].slowness else '?'}"
        return [f"{_several(named, 'slow')}, up to {cause}"]
    measured = [r for r in rows if r.state == "training" and r.tokens_per_s > 0 and r.micro_steps >= MIN_STEPS]
    best = max((row.tokens_per_s for row in measured), default=0.0)
    slow = sorted((r for r in measured if r.tokens_per_s * SLOW_RATIO <= best), key=lambda row: row.tokens_per_s)
    return [f"{_several(slow, 'slow')}, up to {best / slow[0].tokens_per_s:.1f}x"] if slow else []


def _factor(row: ReplicaStatus) -> float:
    return row.slowness.factor if row.slowness else 0.0


def _several(rows: Sequence[ReplicaStatus], state: str) -> str:
    """One replica with its host, or the ids of a few and how many more."""
    if len(rows) == 1:
        return f"replica {rows[0].replica} ({rows[0].host}) is {state}"
    names = ", ".join(str(row.replica) for row in rows[:NAMED])
    more = f" and {len(rows) - NAMED} more" if len(rows) > NAMED else ""
    return f"replicas {names}{more} are {state}"
