"""Whether a fleet is well: a pure function from what its status shows to a verdict with its reasons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from tsugi_kpool.core.diagnosis import Part
from tsugi_kpool.core.effects import FleetStage
from tsugi_kpool.core.messages import ReplicaStatus

from .refusals import Kind

LOST = frozenset({"silent", "failed", "lost", "dead", "left", "quarantined"})
"""States of a replica that takes no part any more, though its work is not done."""
HARMLESS = frozenset({Kind.KEY, Kind.HANDSHAKE, Kind.OLD, Kind.EARLY})
"""Refusals that say nothing of the fleet: connections without a key, late copies, and what an honest link repeats."""
NAMED = 3
"""Replicas named in one reason; the others are counted."""


class Health(StrEnum):
    """The verdicts, from best to worst."""

    HEALTHY = "healthy"
    DEGRADED = "degraded"
    NO_QUORUM = "no quorum"


@dataclass(frozen=True)
class HealthVerdict:
    """How the fleet is, and what speaks against it."""

    health: Health
    reasons: tuple[str, ...] = ()


def judge(
    stage: str,
    replicas: Sequence[ReplicaStatus],
    min_replicas: int,
    failure: str | None = None,
    refused: Mapping[str, int] | None = None,
    refused_of: Sequence[str] = (),
    unformed: str = "",
    unheard: str = "",
) -> HealthVerdict:
    """Judge a fleet.

    Args:
        stage: Stage of the run. Before all replicas have joined nothing is lost; after the end nobody is missed.
        replicas: All of them, not only those that fit into a frame.
        min_replicas: A run that trains with fewer live replicas has no quorum.
        failure: Why the run has failed, if it has.
        refused: What the sideband has not taken in lately, by kind; what came from a holder of a key is trouble.
        refused_of: Whose it was, in words, as far as members' own messages are among it.
        unformed: Why no group has formed, or none commits a round; empty: one does, or is about to.
        unheard: Why nobody is judged by silence; empty: somebody is heard.
    """
    running = stage in (FleetStage.TRAINING, FleetStage.DRAINING)
    lost = [row for row in replicas if row.state in LOST] if running or stage == FleetStage.FAILED else []
    live = len(replicas) - len(lost)
    reasons = [f"the run has failed: {failure or 'no reason is known'}"] if stage == FleetStage.FAILED else []
    if running and live < min_replicas:
        quorum = f"{live} of at least {min_replicas} replicas are live"
        return HealthVerdict(Health.NO_QUORUM, (*([unheard] if unheard else []), quorum, *reasons, *_lost(lost)))
    reasons += [*_lost(lost), *(_slow(replicas) if stage == FleetStage.TRAINING else ())]
    if running and unformed:
        reasons.insert(0, unformed)
    if running and unheard:
        reasons.insert(0, unheard)
    told = sum(times for kind, times in (refused or {}).items() if kind not in HARMLESS)
    if told:
        whose = f": {', '.join(refused_of)}" if refused_of else ""
        reasons.append(f"{told} frames of holders of a key were refused{whose}")
    return HealthVerdict(Health.DEGRADED if reasons else Health.HEALTHY, tuple(reasons))


def _lost(rows: Sequence[ReplicaStatus]) -> list[str]:
    states = {row.state for row in rows}
    return [_several(rows, states.pop() if len(states) == 1 else "lost")] if rows else []


def _slow(rows: Sequence[ReplicaStatus]) -> list[str]:
    """Replicas that the diagnosis (core.slow.stragglers) calls slow, the slowest one with its figure and cause."""
    slow = sorted((row for row in rows if row.slowness), key=_factor, reverse=True)
    links = [row for row in slow if row.slowness and row.slowness.part == Part.ROUND]
    slow = [row for row in slow if row not in links]
    reasons = [f"{_several(links, 'behind a slow link')}: rounds come late"] if links else []
    if not slow or slow[0].slowness is None:
        return reasons
    worst = slow[0].slowness
    text = f"{_several(slow, 'slow')}, {'up to ' * (len(slow) > 1)}{worst.factor:.1f}x, cause: {worst.cause}"
    return [text, *reasons]


def _factor(row: ReplicaStatus) -> float:
    return row.slowness.factor if row.slowness else 0.0


def _several(rows: Sequence[ReplicaStatus], state: str) -> str:
    """One replica with its host, or the ids of a few and how many more."""
    if len(rows) == 1:
        return f"replica {rows[0].replica} ({rows[0].host}) {'has' if state == 'left' else 'is'} {state}"
    names = ", ".join(str(row.replica) for row in rows[:NAMED])
    more = f" and {len(rows) - NAMED} more" if len(rows) > NAMED else ""
    return f"replicas {names}{more} {'have' if state == 'left' else 'are'} {state}"
