"""When the members of a two-stage round say what they were told, and who leaves for what they show."""

from __future__ import annotations

from tsugi_kpool.core.messages import Compare
from tsugi_kpool.core.rounds.reduction import reduction
from tsugi_kpool.core.settings import Reduce

from .comparison import MOST_COMPARED, Comparison, Findings
from .state import HubState


def has_owners(state: HubState, members: int) -> bool:
    """Whether rounds of so many members have owners. An exchange sums for all, and stands beside the hub."""
    return not state.plan.exchange and reduction(state.plan.kpool, members) is Reduce.SCATTER


def comparison_of(state: HubState, now_s: float) -> Comparison | None:
    """The comparison of the round in flight, which has not come out alike; None where owners have told nobody
    anything."""
    fire = state.rounds.in_flight
    if fire is None or not has_owners(state, len(fire.members)) or len(fire.members) > MOST_COMPARED:
        return None
    return Comparison(Compare(fire.generation, fire.round), fire.members, now_s)


def findings(state: HubState, comparison: Comparison) -> Findings:
    """What follows from what all have said."""
    keys = {member: state.members[member].hello.key for member in comparison.members}
    return comparison.found(keys, state.rounds.verify)


def disputants(state: HubState, found: Findings) -> dict[int, str]:
    """Who leaves for a dispute that nobody can settle, and why."""
    leaving = state.disputes.add(map(frozenset, found.disputes))
    why = f"{in_dispute(state, found)}, and it has been in such a dispute before, or is in two at once"
    return dict.fromkeys(sorted(leaving), why)


def in_dispute(state: HubState, found: Findings) -> str:
    """Who says what of whom."""
    told = [f"replica {member} says this of replica {sender}" for member, sender in found.disputes]
    number = state.rounds.number
    return f"members were told different things in round {number}, and nobody can prove it ({', '.join(told)})"
