"""Replicas from other machines: who gets which place, and whose seat is free again before the run begins."""

from __future__ import annotations

from tsugi_kpool.core.effects import ASKER, Effect, FleetStage, Send
from tsugi_kpool.core.likeness import HOST, refusal
from tsugi_kpool.core.messages import Fell, Refused, SlotRequest, StopRequest
from tsugi_kpool.core.records import PARTED, SeatFreed, SlotGiven

from .changes import keep
from .leaving import leave, let_go
from .liveness import CUT_S
from .slots import BUSY, ENDED, HELD_S, UNHEARD_S
from .state import HubState


def grant(state: HubState, request: SlotRequest, now_s: float) -> list[Effect]:
    """A place, the same for the same ticket, or why there is none; a new one is written down before it is told."""
    host = request.about.get(HOST, "")
    if (reason := refusal(request.about, state.slots.about)) is not None:
        return [*state.slots.turned_away(host, reason), Send(ASKER, Refused(reason))]
    committed = bool(state.rounds.version)
    known = state.slots.of(request.ticket)
    if known is not None:
        state.slots.hold(request.ticket, known, now_s)
        state.slots.guests[known] = request.about
        return [Send(ASKER, state.slots.answer(request.ticket, committed))]
    replica = vacancy(state, now_s)
    if isinstance(replica, Refused):
        return [Send(ASKER, replica)]
    if not state.slots.may_give(now_s):
        return [Send(ASKER, Refused(BUSY))]
    kept = keep(state, SlotGiven(request.ticket, replica), now_s)
    state.slots.guests[replica] = request.about
    return [*kept, Send(ASKER, state.slots.answer(request.ticket, committed))]


def vacancy(state: HubState, now_s: float) -> int | Refused:
    """The place that a new asker would get, or why there is none. Gives nothing."""
    if state.over or state.stage is FleetStage.FAILED:
        return Refused(ENDED)
    joined = {replica for replica, each in state.members.items() if each.here}
    replica = state.slots.free(joined, now_s, state.most)
    if replica is not None:
        return replica
    silent = {each for each in joined if now_s - state.members[each].heard_s > UNHEARD_S}
    unheard = state.slots.unheard(joined, now_s) | silent & set(state.slots.replicas)
    return state.slots.refusal(joined, state.most, unheard)


def wants_adapter(state: HubState) -> bool:
    """Whether no replica writes its adapter on the hub's machine: then one from elsewhere gives its own."""
    here = (replica for replica, each in state.members.items() if each.lost is None)
    return bool(state.slots.replicas) and all(replica in state.slots.replicas for replica in here)


def with_adapter(state: HubState) -> set[str]:
    """The tickets of the replicas that `tsugi join` has brought and that have ended with an adapter: they may offer
    it."""
    ended = [replica for replica, each in state.members.items() if each.gone and each.formed and each.lost is None]
    return {ticket for replica in ended if (ticket := state.slots.ticket_of(replica)) is not None}


def give_back(state: HubState, replica: int, reason: str) -> list[Effect]:
    """Nobody is this replica any more; nothing when the run has begun, or when its own launcher looks after it."""
    if state.stage is not FleetStage.GATHERING or replica not in state.slots.replicas:
        return []
    return keep(state, SeatFreed(replica, reason))


def stop(state: HubState, request: StopRequest) -> list[Effect]:
    """Who holds a place gives it back, and ends nobody else's run: its replica leaves when what it has is committed.

    A replica that drains with all others, or has ended, ends with them.
    """
    replica = state.slots.of(request.ticket)
    if replica is None:
        return []
    member = state.members.get(replica)
    if request.reason and (member is None or not member.here):
        host = state.slots.guests.get(replica, {}).get(HOST, "")
        told = state.slots.turned_away(host, request.reason, replica)
        return [*told, *keep(state, SeatFreed(replica, request.reason))]
    if state.stage is FleetStage.TRAINING and member is not None and member.here:
        return let_go(state, replica)
    if state.stage is FleetStage.GATHERING:
        return give_back(state, replica, PARTED)
    if member is not None and member.here:
        return []
    return keep(state, SeatFreed(replica, PARTED))


def fell(state: HubState, told: Fell, now_s: float) -> list[Effect]:
    """A replica's own launcher, elsewhere, says that its process was killed: nobody waits for its silence."""
    replica = state.slots.of(told.ticket)
    member = state.members.get(replica) if replica is not None else None
    if replica is None or member is None or not member.here or member.hello.pid != told.pid:
        return []
    return give_back(state, replica, told.reason) or leave(state, {replica: told.reason}, now_s)


def free_silent(state: HubState, now_s: float) -> list[Effect]:
    """While others still gather: replicas from elsewhere that have not been heard for a while keep no seat."""
    freed: list[Effect] = []
    for replica, member in sorted(state.members.items()):
        silent_s = now_s - member.heard_s
        if silent_s > HELD_S:
            freed += give_back(state, replica, f"silent for {HELD_S:g} s")
        elif member.cut and silent_s > CUT_S:
            freed += give_back(state, replica, f"silent for {CUT_S:g} s, and its connection has closed")
    return freed
