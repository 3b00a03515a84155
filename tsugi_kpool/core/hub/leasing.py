"""How much data a replica is handed at a time: enough to train on while there is no hub, not more than its share."""

from __future__ import annotations

from .goodput import samples_per_s
from .ranges import count
from .state import HubState

FIRST_STEPS = 16
"""A replica that has just begun holds at least so many steps: by then its pace is known, hub or no hub."""

FIRST_SHARE = 8
"""... but no more than 1 / (8 x replicas) of what is left: in a short run the first to come takes no one's share."""


def ahead(state: HubState, replica: int) -> int:
    """Positions for `lease_ahead_s` of this replica's work; `FIRST_STEPS` at least while its pace is new.

    Towards the end a replica gets work for half of the time that the whole fleet needs for what is left (guided
    self-scheduling, Polychronopoulos and Kuck 1987, with paces): a slow one then does not hold the last samples.
    """
    member = state.members.get(replica)
    beat = member.beat if member else None
    begins = beat is None or beat.steps < FIRST_STEPS
    least = _at_first(state) if begins and state.plan.lease_ahead_s else 0
    pace = samples_per_s(beat) if beat else 0.0
    if not pace:
        return least
    left_s = state.leases.left / max(pace, state.tally.samples_per_s)
    return max(least, int(min(state.plan.lease_ahead_s, left_s / 2) * pace))


def samples_trained(state: HubState) -> int:
    """Samples of the data order that have been trained on, each once, with those that a resumed run began with.

    The durable ones, whoever trained them, and what those who are here have trained on since. A replica that has left
    is not counted by its last beat: that may be older than what a round has committed of its work.
    """
    present = [member for member in state.members.values() if member.beat]
    if not state.plan.samples:  # nothing is leased: every replica reads data of its own
        return sum(member.beat.samples for member in [*present, *state.past] if member.beat)
    since = [
        max(0, member.beat.samples - state.leases.settled(member.hello.replica))
        for member in present
        if member.beat and member.lost is None
    ]
    return count(state.leases.durable()) + sum(since)


def tokens_trained(state: HubState) -> int:
    """Supervised tokens that everybody who was ever here has trained on; those trained again count again."""
    return sum(member.trained(state.plan.kpool.n)[1] for member in [*state.members.values(), *state.past])


def _at_first(state: HubState) -> int:
    share = state.leases.left // (FIRST_SHARE * state.plan.replicas)
    return min(FIRST_STEPS * state.plan.micro_batch, share)
