"""How long a replica whose loop has ended waits for the last round: a pure verdict by what it sees of the fleet.

It waits for as long as somebody else trains. Where nothing moves any more it ends with the reason, because nobody
else would end it.
"""

from __future__ import annotations

from dataclasses import dataclass

from tsugi_kpool.core.messages import FleetStatus, ReplicaStatus

REFUSED_S = 10.0
"""The hub has been refusing what we say for this long since our loop has ended: it will not hear of that."""
STILL_S = 3600.0
"""Others may load, evaluate or save for this long without a step."""
ENDED = frozenset({"draining", "done", "left", "failed", "quarantined"})
"""States of a replica that is not waited for any more."""


@dataclass(frozen=True)
class Waiting:
    """What a replica that waits for the end sees."""

    replica: int
    waited_s: float
    """Since its loop has ended."""
    still_s: float
    """Since anything of the fleet has moved."""
    fleet: FleetStatus | None = None
    """As the hub has shown it last; None where it has not answered."""
    refused: str | None = None
    """What of ours the hub has refused since then, in words."""


def why_not(now: Waiting, round_timeout_s: float, timeout_s: float | None = None) -> str | None:
    """Why there is nothing to wait for any more, in one line; None while there is.

    Args:
        now: What is seen.
        round_timeout_s: A round that takes longer fails: twice that without any movement is none under way.
        timeout_s: The user's own deadline; None has none.
    """
    if timeout_s is not None and now.waited_s > timeout_s:
        return f"the other replicas did not come to an end within {timeout_s:g} s: {picture(now)}"
    if now.refused is not None and now.waited_s > REFUSED_S:
        return (
            f"the hub does not take in what this replica says, {now.refused}, so that it does not hear that the "
            "loop has ended: this is a fault of Tsugi's"
        )
    everybody = now.fleet is not None and not others(now)
    if everybody and now.still_s > 2 * round_timeout_s:
        return f"every loop has ended, but no round has been committed for {now.still_s:.0f} s: {picture(now)}"
    if now.still_s > STILL_S:
        return f"nothing has moved for {now.still_s:.0f} s: {picture(now)}"
    return None


def others(now: Waiting) -> list[ReplicaStatus]:
    """The replicas that still train, as far as is known."""
    rows = now.fleet.replicas if now.fleet is not None else ()
    return [row for row in rows if row.replica != now.replica and row.state not in ENDED]


def picture(now: Waiting) -> str:
    """Who is waited for, in one line."""
    if now.fleet is None:
        return "the hub has not said how they are"
    rows = [f"replica {row.replica} ({row.host}) is {row.state} at step {row.steps}" for row in others(now)]
    reasons = list(now.fleet.health_reasons)
    return "; ".join([*rows[:3], *reasons]) or f"no other replica trains, version {now.fleet.version}"


def moved(before: FleetStatus | None, now: FleetStatus | None) -> bool:
    """Whether anything has happened between two statuses."""
    return now is not None and _marks(before) != _marks(now)


def _marks(status: FleetStatus | None) -> object:
    if status is None:
        return None
    rows = tuple((row.replica, row.state, row.steps, row.tokens) for row in status.replicas)
    return status.stage, status.generation, status.version, status.reduced, rows
