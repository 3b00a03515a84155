"""Membership: which replicas the present epoch has, and how the next one is opened."""

from __future__ import annotations

from .changes import keep
from .effects import Effect, Event, Send
from .hub_state import HubState
from .messages import Epoch
from .records import EpochOpened


def epoch_order(state: HubState) -> Epoch:
    """The order that forms the present epoch's group."""
    return Epoch(state.epoch, state.present, state.rounds.version, state.rounds.active, state.newcomers, state.donor)


def open_epoch(state: HubState, now_s: float) -> list[Effect]:
    """Order a group of all that are there. A round in flight is forgotten: it would have another group's members.

    Members that have never been in a group begin from the donor's anchors, which is one that has been in one.
    """
    members = tuple(replica for replica, member in sorted(state.members.items()) if member.here)
    newcomers = tuple(replica for replica in members if not state.members[replica].formed)
    donor = next((replica for replica in members if replica not in newcomers), min(members, default=0))
    opened = keep(state, EpochOpened(state.epoch + 1, members, newcomers, donor), now_s)
    order = epoch_order(state)
    for replica in members:
        state.members[replica].ordered_s = now_s
    effects: list[Effect] = [opened, Event("epoch", {"epoch": order.epoch, "members": list(members)})]
    return effects + [Send(replica, order) for replica in members]
