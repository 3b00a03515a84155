"""Wait for a round: for loops in which every step is to be exact."""

from __future__ import annotations

import time

from tsugi_kpool.core.messages import FleetStatus
from tsugi_kpool.core.replica.closing import Waiting as Seen
from tsugi_kpool.core.replica.closing import moved, picture
from tsugi_kpool.engine.engine import KPoolEngine
from tsugi_kpool.errors import ConfigError, LaunchError, SidebandError, TrainingError

from .session import Session

WAIT_S = 3600.0
"""The longest wait, if the loop says nothing else."""
LOOK_S = 0.001
ASK_S = 5.0
"""Without the round by then, the hub is asked how the fleet is, and again after the same time."""
IN_VAIN = (
    "version {version} never comes: nobody trains, and a round takes {needed:g} steps of each replica, of which this "
    "one has made {made}; a loop that waits after every step wants min_steps=1, trigger='count' and count=1"
)


def wait_for_version(session: Session, version: int, timeout_s: float) -> None:
    """Return when so many rounds are committed here.

    Raises:
        ConfigError: nobody trains, and this replica has not made the steps that a round takes.
        TsugiError: the run has failed, or the time is over.
    """
    engine, began_s = session.engine, time.monotonic()
    if not isinstance(engine, KPoolEngine):
        raise ConfigError(["only worker 0 of a replica knows when a round is committed"])
    asked_s, before = began_s, None
    while engine.version < version:
        engine.flags.check()
        now_s = time.monotonic()
        if now_s - asked_s >= ASK_S:
            asked_s, fleet = now_s, _ask(session)
            if not moved(before, fleet):
                _refuse_in_vain(engine, version, fleet)
            before = fleet
        if now_s - began_s > timeout_s:
            seen = Seen(engine.replica, timeout_s, timeout_s, _ask(session))
            raise TrainingError(f"version {version} has not come within {timeout_s:g} s: {picture(seen)}")
        time.sleep(LOOK_S)


def _ask(session: Session) -> FleetStatus | None:
    try:
        return session.status()
    except (SidebandError, LaunchError):
        return None


def _refuse_in_vain(engine: KPoolEngine, version: int, fleet: FleetStatus | None) -> None:
    """Nothing of the fleet has moved: is that because all wait for a step that nobody makes?"""
    if fleet is None or fleet.firing:
        return
    made, needed = max(engine.buffer.pooled()), fleet.target / max(1, len(fleet.replicas))
    if made < needed:
        raise ConfigError([IN_VAIN.format(version=version, needed=needed, made=made)])
