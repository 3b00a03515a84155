"""How much data a replica is handed at a time: enough to train on while there is no hub, not more than its share."""

from __future__ import annotations

from .fleet import samples_per_s
from .hub_state import HubState


def ahead(state: HubState, replica: int) -> int:
    """Positions for `lease_ahead_s` of this replica's work; 0 while its pace is unknown.

    Towards the end a replica gets work for half of the time that the whole fleet needs for what is left (guided
    self-scheduling, Polychronopoulos and Kuck 1987, with paces): a slow one then does not hold the last samples.
    """
    member = state.members.get(replica)
    pace = samples_per_s(member.beat) if member else 0.0
    if not pace:
        return 0
    left_s = state.leases.left / max(pace, state.tally.samples_per_s)
    return int(min(state.plan.lease_ahead_s, left_s / 2) * pace)
