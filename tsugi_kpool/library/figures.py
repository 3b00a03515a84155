"""How a replica's training goes, for the loop that asks its handle."""

from __future__ import annotations

from dataclasses import dataclass, replace

from tsugi_kpool.engine.engine import KPoolEngine
from tsugi_kpool.engine.follower import Engine
from tsugi_kpool.errors import LaunchError, SidebandError

from .session import Session


@dataclass(frozen=True)
class PoolFigures:
    """Of one replica, and of what it knows of the fleet. Without peers nothing is counted."""

    steps: int = 0
    """That this replica has made."""
    tokens: int = 0
    """Supervised ones that it has trained on."""
    committed: int = 0
    """Of them, those that the fleet has of every adapter."""
    discarded: int = 0
    """Of them, those that it will never have, of the adapter that has lost most: too old, or no numbers."""
    loss: float = 0.0
    """Smoothed."""
    version: int = 0
    """Rounds committed."""
    members: tuple[int, ...] = ()
    """The replicas that train together now."""
    round: int = 0
    """Number of the newest round that was begun, committed or not; 0 before the first."""
    reason: str = ""
    """Why it fired: link_free, convergence, count, bound, drain, ..."""
    lag_steps: int | None = None
    """Steps behind the furthest replica; None where the hub has not been asked, or has not answered."""
    lag_s: float | None = None
    """And how long ago that one was here."""


def local_figures(engine: Engine) -> PoolFigures:
    """What a replica knows by itself."""
    progress = engine.progress
    own = PoolFigures(progress.steps, progress.tokens, loss=progress.loss, version=engine.version)
    if not isinstance(engine, KPoolEngine):
        return own
    ledger, aggregator = engine.buffer.ledger, engine.aggregator
    fired = aggregator.fired
    return replace(
        own,
        committed=min(ledger.committed),
        discarded=max(ledger.discarded),
        members=aggregator.members,
        round=fired.round if fired is not None else 0,
        reason=fired.reason if fired is not None else "",
    )


def with_lag(own: PoolFigures, session: Session, replica: int) -> PoolFigures:
    """And what the hub knows, if it answers."""
    try:
        rows = session.status().replicas
    except (SidebandError, LaunchError):
        return own
    row = next((each for each in rows if each.replica == replica), None)
    return own if row is None else replace(own, lag_steps=row.lag_steps, lag_s=row.lag_s)
