"""Replicas leave, the others go on: the round in flight is forgotten, the next generation has the survivors.

Over an exchange the round goes on: parts that have come count, whoever gave them. What such a member held is handed
out again when the round is decided, less what its part has made durable. Who leaves between two rounds is not in the
next generation, which opens when all have voted on the last one (`joining.admit`): one for all who leave until then,
because its order names every member to every member.

Nothing that a survivor has buffered is lost, because nothing leaves a buffer before its Commit. What the one that
left had buffered is gone: its leases, from its durable count on, are handed out again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tsugi_kpool.core.effects import Effect, FleetStage, Send
from tsugi_kpool.core.events import Aborted, Parting
from tsugi_kpool.core.messages import Abort, Drain, Finish, Message, Refused
from tsugi_kpool.core.records import PARTED, Left

from .changes import between_rounds, keep
from .committing import commit_reduced, is_enough
from .endings import desert, fail
from .orders import open_generation
from .state import HubState

FENCED = "replica {replica} has left this run ({reason}), which goes on without this process"
QUARANTINED = "quarantined: "
"""Begins the reason of a replica that nobody is to start again without looking."""
RETRIES = 3
"""So many rounds in a row may break although everybody is there; then the replicas cannot reach each other."""


def leave(state: HubState, reasons: Mapping[int, str], now_s: float, quarantined: bool = False) -> list[Effect]:
    """These replicas take no part any more, each for its reason. Those that have left already change nothing.

    Args:
        state: The hub's.
        reasons: Who leaves, and why.
        now_s: The hub's time.
        quarantined: Their numbers cannot be: nobody is to start them again without looking.
    """
    going = {replica: why for replica, why in reasons.items() if replica in state.members and _here(state, replica)}
    if not going or state.stage is FleetStage.FAILED:
        return []
    replica, reason = next(iter(going.items()))
    if state.stage is FleetStage.GATHERING:
        return fail(state, f"replica {replica}: {reason}", replica)
    # Commit before anybody leaves: `Left` hands out again what is not durable, and this round makes samples durable.
    # (Only a restarted hub finds a round that is agreed and not committed.) Not with the part of one whose numbers
    # cannot be.
    whole = state.rounds.agreed and is_enough(state, now_s)
    effects = commit_reduced(state, now_s) if whole and not quarantined else []
    was_present = [each for each in going if each in state.present]
    lasts = not quarantined and _goes_on_without(state, was_present)
    if was_present and not lasts:
        effects += abort(state, f"replica {', '.join(map(str, was_present))} left")
    for each, why in going.items():
        effects += _leave(state, each, why, now_s, quarantined)
    if state.over or not was_present or lasts:
        return effects
    if _has_anchors(state) and between_rounds(state) and _others(state) and not quarantined:
        return effects  # `joining.admit` opens one
    if _has_anchors(state) or _may_begin_anew(state, reason):
        # Last, because its members are those that the records above have left.
        return effects + open_generation(state, now_s)
    if reason == PARTED:
        return effects + desert(state)
    return [*effects, *fail(state, f"every replica has gone; the last one, replica {replica}: {reason}", replica)]


def _goes_on_without(state: HubState, going: Sequence[int]) -> bool:
    """Whether the round in flight goes on: an exchange makes it of the parts of whoever is there. The next generation
    opens when it is over (`joining.admit`)."""
    others = [each for each in state.present if each not in going and state.members[each].here]
    return bool(others) and bool(going) and all(state.rounds.survives(each) for each in going)


def _has_anchors(state: HubState) -> bool:
    """Whether one of those who are left has the fleet's anchors: a newcomer that has never been in a group has only
    those that the run begins with. In a resumed run these are the checkpoint's: before the first commit everybody who
    comes is told of it (`slot_requests.grant`)."""
    return any(each.formed or not state.rounds.version for each in state.members.values() if each.here)


def _others(state: HubState) -> bool:
    """Whether members of the present generation are left. Newcomers alone wait for no round of it."""
    return any(state.members[each].here for each in state.present)


def _may_begin_anew(state: HubState, reason: str) -> bool:
    """Whether others can take over from the last one: nothing was committed that went with it, and they may come."""
    return reason == PARTED and not state.rounds.version and bool(state.slots.replicas) and not state.interrupted


def let_go(state: HubState, replica: int) -> list[Effect]:
    """Who brought this replica wants it back: it ends its step, what it has is committed, then it leaves."""
    if replica not in state.present or replica in state.parting:
        return []
    state.parting.add(replica)
    return [Parting(replica), Send(replica, Drain(PARTED))]


def see_off(state: HubState, now_s: float) -> list[Effect]:
    """Those of whom nothing is buffered any more leave, on the anchors of this version."""
    if not state.parting or state.rounds.in_flight or state.stage is not FleetStage.TRAINING:
        return []
    here = (state.generation, state.rounds.version)
    done = [
        replica
        for replica in sorted(state.parting)
        if (beat := state.members[replica].beat)
        and (beat.generation, beat.version) == here
        and beat.drained
        and not any(beat.pooled)
    ]
    return leave(state, dict.fromkeys(done, PARTED), now_s)


def again(state: HubState, reason: str, now_s: float) -> list[Effect]:
    """A collective broke though all its members are there: form the group once more, or give up.

    Every generation has rendezvous keys of its own, so that nothing of the broken group is met again.
    """
    if state.retries >= RETRIES:
        reason = next(iter(state.contact.unreached.values()), reason)  # says more than that time ran out
        return fail(state, f"{reason}; {state.retries} more tries did not help")
    effects = abort(state, reason) + open_generation(state, now_s)
    state.retries += 1
    return effects


def abort(state: HubState, reason: str) -> list[Effect]:
    """Tell the members of the round in flight to forget it. It is forgotten here when the next generation opens."""
    fire = state.rounds.in_flight
    if fire is None:
        return []
    return [
        Aborted(fire.round, reason),
        *(Send(member, Abort(fire.generation, fire.round, reason)) for member in fire.members),
    ]


def goodbye(state: HubState, replica: int, reason: str) -> Message:
    """What a process is told that has left, now or whenever it is heard again: it may have missed it.

    Who was taken back by its user has finished; another one joins again when it may.
    """
    if reason == PARTED and state.stage is not FleetStage.GATHERING:
        return Finish(state.rounds.version, evaluate=False, first=replica)
    quarantined = reason.startswith(QUARANTINED)
    return Refused(FENCED.format(replica=replica, reason=reason), fenced=True, quarantined=quarantined)


def _here(state: HubState, replica: int) -> bool:
    return state.members[replica].here


def _leave(state: HubState, replica: int, reason: str, now_s: float, quarantined: bool) -> list[Effect]:
    member = state.members[replica]
    # A hub that went on from a journal may never have heard it: then all that it was handed counts as trained on.
    trained = member.beat.samples if member.beat else state.leases.held(replica)
    kept = keep(state, Left(replica, reason, trained, quarantined), now_s)
    return [*kept, Send(replica, goodbye(state, replica, reason))]
