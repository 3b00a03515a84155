"""Orders reach their members: sent once, and said again to those whose beats show that they missed them."""

from __future__ import annotations

from .effects import Effect, FleetStage, Send
from .endings import finish_order
from .epochs import epoch_order
from .fleet import Member
from .hub_state import HubState
from .messages import Beat, Drain, Message, Refill
from .records import PARTED

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
    if beat.epoch < state.epoch:
        return [epoch_order(state)]
    rounds = state.rounds
    orders: list[Message] = []
    if rounds.newest_commit and beat.version < rounds.version:
        orders.append(rounds.newest_commit)
    if rounds.in_flight and max(beat.landed, beat.joined) < rounds.in_flight.round:
        orders.append(rounds.in_flight)
    parting = member.hello.replica in state.parting
    if beat.drained and not parting and not state.leases.exhausted and state.stage is FleetStage.TRAINING:
        orders.append(Refill())
    if (state.interrupted or parting) and not beat.drained:
        orders.append(Drain("interrupted" if state.interrupted else PARTED))
    if state.stage is FleetStage.FINISHED and not member.gone:
        orders.append(finish_order(state))
    return orders
