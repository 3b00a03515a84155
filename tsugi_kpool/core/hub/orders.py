"""Orders to the members, from the one that opens a generation: sent once, and said again to those who missed them.

Which orders a member has missed, its beats show.
"""

from __future__ import annotations

from tsugi_kpool.core.effects import Effect, FleetStage, Send
from tsugi_kpool.core.messages import Beat, Drain, Generation, Message, Refill
from tsugi_kpool.core.records import PARTED, GenerationOpened

from .changes import between_rounds, keep
from .endings import finish_order
from .members import Member
from .state import HubState

REPEAT_S = 1.0
"""An order is repeated at most this often to a member whose beats show that it has not acted on it."""


def order(state: HubState, message: Message, now_s: float) -> list[Effect]:
    """Send an order to everybody; it is repeated to those whose beats show that they missed it."""
    for replica in state.present:
        state.members[replica].ordered_s = now_s
    return [Send(replica, message) for replica in state.present]


def repeat(state: HubState, member: Member, now_s: float) -> list[Effect]:
    """Say again what this member's beat shows that it has missed."""
    if now_s - member.ordered_s < REPEAT_S:
        return []
    orders = missed(state, member)
    if not orders:
        return []
    member.ordered_s = now_s
    return [Send(member.hello.replica, each) for each in orders]


def missed(state: HubState, member: Member) -> list[Message]:
    """The orders that this member has not acted on yet, in the order in which it needs them."""
    beat = member.beat
    orders = _missed(state, member, beat) if beat is not None else []
    return orders if orders and member.hello.replica in state.present else []  # asked last: it walks the members


def _missed(state: HubState, member: Member, beat: Beat) -> list[Message]:
    rounds = state.rounds
    if beat.generation < state.generation:
        behind = _behind(state, beat) if state.plan.exchange else []
        # Who has left may have been its donor or a newcomer; the one that is about to open is without it.
        another = state.departed.due and between_rounds(state)
        return behind if another else [*behind, generation_order(state)]
    orders = _behind(state, beat)
    if rounds.in_flight and max(beat.reduced, beat.joined) < rounds.in_flight.round:
        orders.append(rounds.in_flight)
    if rounds.check and beat.reduced >= rounds.number and member.hello.replica in rounds.awaited:
        orders.append(rounds.check)
    if rounds.comparison and beat.reduced >= rounds.number and member.hello.replica in rounds.awaited:
        orders.append(rounds.comparison.order)
    parting = member.hello.replica in state.parting
    if beat.drained and not parting and not state.leases.exhausted and state.stage is FleetStage.TRAINING:
        orders.append(Refill())
    if (state.interrupted or parting) and not beat.drained:
        orders.append(Drain("interrupted" if state.interrupted else PARTED))
    if state.stage is FleetStage.FINISHED and not member.gone:
        orders.append(finish_order(state))
    return orders


def _behind(state: HubState, beat: Beat) -> list[Message]:
    """Of the newest committed round what this member lacks: an exchange's it may not even have begun."""
    commit, landed = state.rounds.newest_commit, state.rounds.landed
    if (
        commit is None
        or landed is None
        or beat.generation != landed.generation
        or beat.version >= state.rounds.version
    ):
        return []
    return [landed, commit] if state.plan.exchange and beat.joined < landed.round else [commit]


def generation_order(state: HubState) -> Generation:
    """The order that forms the present generation's group. It names all members: what goes to a thousand of them
    again is one message, and one frame, as long as it says the same."""
    told, here = state.opening.order, (state.generation, state.rounds.version, state.rounds.active)
    if told is None or told.members is not state.present or (told.generation, told.version, told.active) != here:
        generation, version, active = here
        key = state.group_keys.of(generation)
        told = Generation(generation, state.present, version, active, state.newcomers, state.donor, key)
        state.opening.order = told
    return told


def open_generation(state: HubState, now_s: float) -> list[Effect]:
    """Order a group of all that are there. A round in flight is forgotten: it would have another group's members.

    Members that have never been in a group begin from the donor's anchors, which is one that has been in one.
    """
    members = tuple(replica for replica, member in sorted(state.members.items()) if member.here)
    newcomers = tuple(replica for replica in members if not state.members[replica].formed)
    donor = next((replica for replica in members if replica not in newcomers), min(members, default=0))
    # Kept first: the order is built from the state that the record leaves.
    opened = keep(state, GenerationOpened(state.generation + 1, members, newcomers, donor), now_s)
    order = generation_order(state)
    for replica in members:
        state.members[replica].ordered_s = now_s
    return opened + [Send(replica, order) for replica in members]
