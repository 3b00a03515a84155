"""The life of a round on the hub: when it fires, and what its landings lead to."""

from __future__ import annotations

from .effects import Effect, Event, FleetStage, Send
from .endings import fail, finish
from .hub_state import HubState, names
from .messages import Ack, Landed
from .orders import order
from .trigger import Reason, decide


def maybe_fire(state: HubState, now_s: float) -> list[Effect]:
    """Fire when the pool of the adapters that are due is worth it, and nobody still owes a commit."""
    if state.rounds.in_flight or not state.training:
        return []
    if state.tally.at(state.epoch, state.rounds.version) < len(state.members):
        return []
    if state.tally.drained == len(state.members):
        return _drain(state, now_s)
    due = state.rounds.due()
    verdict = decide(state.plan.kpool, state.pooled(due), len(state.members), True, state.rounds.noise)
    return _fire(state, due, verdict.reason, now_s) if verdict.fire else []


def check_round(state: HubState, now_s: float) -> list[Effect]:
    """A round that has not landed in time fails the run."""
    missing = state.rounds.missing(now_s)
    if not missing:
        return []
    return fail(state, f"round {state.rounds.number} did not land on replica {names(missing)} in time")


def land(state: HubState, landed: Landed, now_s: float) -> list[Effect]:
    """A member's collective has landed; the last one commits the round, if all say the same."""
    return [Send(landed.replica, Ack(landed.seq)), *_land(state, landed, now_s)]


def _drain(state: HubState, now_s: float) -> list[Effect]:
    """Nobody has data left: ship all that is buffered in one last round, then finish."""
    if not any(state.tally.pooled):
        return finish(state)
    state.stage = FleetStage.DRAINING
    everything = tuple(range(state.plan.kpool.n))
    return [Event("drained", {}), *_fire(state, everything, Reason.FINAL, now_s)]


def _fire(state: HubState, adapters: tuple[int, ...], reason: Reason, now_s: float) -> list[Effect]:
    members = tuple(sorted(state.members))
    fire = state.rounds.fire(state.epoch, adapters, members, reason, now_s)
    fired = {"round": fire.round, "adapters": list(adapters), "reason": str(reason)}
    return [Event("fired", {**fired, "pooled": state.pooled(adapters)}), *order(state, fire, now_s)]


def _land(state: HubState, landed: Landed, now_s: float) -> list[Effect]:
    if not state.rounds.land(landed):
        return []
    different = state.rounds.disagreement()
    if different is not None:
        return fail(state, f"round {landed.round} gave different anchors ({different}); nothing of it was applied")
    commit, tokens, facts = state.rounds.commit(state.tally.pooled)
    for replica, weight in tokens.items():
        state.members[replica].committed_tokens += weight
    return [Event("committed", facts), *order(state, commit, now_s)]
