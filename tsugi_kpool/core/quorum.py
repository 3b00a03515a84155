"""Whether there are enough replicas to train: below `min_replicas` the run pauses, and after a while it ends."""

from __future__ import annotations

from .effects import Effect, Event, FleetStage
from .endings import fail
from .hub_state import HubState


def check(state: HubState, now_s: float) -> list[Effect]:
    """Pause or go on when the number of replicas has changed; give up when the others stay away for too long.

    A paused run fires no round and hands out no data, so replicas stop when they have trained on what they hold.
    """
    if state.stage is not FleetStage.TRAINING or state.interrupted:
        state.paused_s = None
        return []
    live, needed = len(state.present), state.plan.min_replicas
    if live >= needed:
        back = state.paused_s is not None
        state.paused_s = None
        return [Event("quorum_back", {"live": live})] if back else []
    timeout_s = state.plan.quorum_timeout_s
    if state.paused_s is None:
        state.paused_s = now_s
        told = {"live": live, "min_replicas": needed, "timeout_s": timeout_s}
        return [Event("quorum_lost", told)] if timeout_s else _give_up(state, live)
    return _give_up(state, live) if now_s - state.paused_s > timeout_s else []


def _give_up(state: HubState, live: int) -> list[Effect]:
    needed, timeout_s = state.plan.min_replicas, state.plan.quorum_timeout_s
    last = f"; the last one to leave was {state.last_left}" if state.last_left else ""
    reason = f"{live} of at least {needed} replicas were left for {timeout_s:g} s (topology.quorum_timeout_s){last}"
    return fail(state, reason, quorum=True)
