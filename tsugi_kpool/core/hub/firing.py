"""The life of a round on the hub: when it fires, and what follows when members have reduced it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec

from tsugi_kpool.core.effects import Effect, FleetStage, Send
from tsugi_kpool.core.events import Drained
from tsugi_kpool.core.messages import Ack, Reduced
from tsugi_kpool.core.records import RoundFired, RoundReduced
from tsugi_kpool.core.rounds.fire_delay import Step, awaited
from tsugi_kpool.core.rounds.trigger import Reason, decide, together

from .changes import keep
from .committing import is_enough
from .endings import finish
from .orders import order
from .quarantine import check_votes, overweight, settle
from .state import HubState

ACKNOWLEDGE_S = 0.5
"""A Reduced is acknowledged by then, if no Commit has done so; links repeat it after twice as long."""


def maybe_fire(state: HubState, now_s: float) -> list[Effect]:
    """Fire when the pool of the adapters that are due is worth it, and everybody has the last commit, or may get it
    while the next round comes in."""
    if state.rounds.in_flight or not state.training or state.broken or state.lacks_quorum:
        return []
    members = len(state.present)
    if not members:
        return []  # everybody was taken back, and others may come
    newcomers = bool(state.waiting) and state.stage is FleetStage.TRAINING
    if state.departed.due or (newcomers and not is_first(state)):
        return []  # for the next generation
    # Until every beat shows this version, a replica may hold a reduced round of which it does not know the end. The
    # version in a Fire can settle one such round, not two.
    due = state.rounds.due()
    if state.tally.at(state.generation, state.rounds.version) < members:
        if not _may_go_ahead(state, due, members):
            return []
    elif newcomers:
        pass  # they have been handed data: the last rounds are not without them
    elif state.parting and _parting_is_done(state):
        return _fire(state, tuple(range(state.plan.kpool.n)), Reason.PARTING, now_s)
    elif state.tally.drained == members and _nothing_left(state):
        return _drain(state, now_s)
    verdict = decide(state.plan.kpool, state.pooled(due), members, True, state.rounds.noise, pace_of(state))
    if not verdict.fire or _held(state, now_s):
        return []
    return _fire(state, due, verdict.reason, now_s)


def is_first(state: HubState) -> bool:
    """Whether an exchange's round would be the first one of its generation. Newcomers wait for that one: where there
    are some at any time, no round would ever fire."""
    return bool(state.plan.exchange) and state.rounds.fired_in != state.generation


def _may_go_ahead(state: HubState, due: tuple[int, ...], members: int) -> bool:
    """Whether an exchange's next round may begin while members still get the result of the last one.

    One of them has it, and nobody is further behind than by this round. Of the adapters that it has shipped the beats
    of those who are behind show as buffered what is in it: these wait for all. So do the last rounds of a run, and
    those after a Commit that asks for something: who missed it would learn from a Fire that the round counts, and
    nothing else. Where training waits for rounds nobody is to wait longer for one that is behind.
    """
    landed, (generation, version) = state.rounds.landed, (state.generation, state.rounds.version)
    if not state.plan.exchange or not state.plan.kpool.overlap or landed is None or landed.generation != generation:
        return False
    if state.parting or state.stage is not FleetStage.TRAINING or state.tally.drained == members:
        return False
    commit = state.rounds.newest_commit
    if commit is not None and (commit.save or commit.evaluator is not None):
        return False
    there = state.tally.at(generation, version)
    level = there > 0 and there + state.tally.at(generation, version - 1) == members
    return level and not set(due).intersection(landed.adapters)


def pace_of(state: HubState) -> float:
    """Steps that the fleet makes while its usual member makes one; looked at once a round, not on every beat."""
    at = (state.generation, state.rounds.version)
    if state.rounds.paced != at:
        state.rounds.paced = at
        state.rounds.pace = together(state.members[each].seconds_per_step() for each in state.present)
    return state.rounds.pace


def _parting_is_done(state: HubState) -> bool:
    """Whether a member that leaves has nothing more to train, and something to ship."""
    beats = [beat for each in state.parting if (beat := state.members[each].beat)]
    return any(beat.drained and any(beat.pooled) for beat in beats)


def _nothing_left(state: HubState) -> bool:
    """Whether those who say that they are drained know of all that they were handed; a Refill may be on its way."""
    if state.interrupted:
        return True
    if state.parting:
        return False  # what those who leave hold and have not trained on is for the others
    if not state.plan.samples:
        return True
    beats = [beat for replica in state.present if (beat := state.members[replica].beat)]
    return state.leases.exhausted and all(each.ticket >= state.leases.newest_ticket(each.replica) for each in beats)


def _held(state: HubState, now_s: float) -> bool:
    """Whether a round that is worth it waits for a step that is about to end."""
    fire_delay_s = state.plan.kpool.fire_delay_s
    if not fire_delay_s:
        return False
    if state.ready_s is None:
        state.ready_s = now_s
        state.delayed_for = awaited(now_s, now_s, fire_delay_s, _steps(state, state.present))
    return bool(awaited(now_s, state.ready_s, fire_delay_s, _steps(state, state.delayed_for)))


def _steps(state: HubState, replicas: Iterable[int]) -> Iterator[Step]:
    """The steps in progress. Asked for on every beat while a round is delayed, so only of those that it waits for."""
    return (step for step in (state.members[replica].step() for replica in replicas) if step is not None)


def check_round(state: HubState, now_s: float) -> list[Effect]:
    """Settle the round in flight if enough members have reduced it, and the votes on the one before if all have."""
    rounds = state.rounds
    if rounds.votes.behind is not None:
        return check_votes(state, now_s)
    return settle(state, now_s) if rounds.decided and is_enough(state, now_s) else []


def on_reduced(state: HubState, reduced: Reduced, now_s: float) -> list[Effect]:
    """A member's collective has ended; the last one commits the round, if all say the same.

    Over an exchange the first one does that shows what this has said.
    """
    acknowledged = Send(reduced.replica, Ack(reduced.seq))
    if not state.rounds.expects(reduced):
        return [acknowledged]
    reduced = _vouched(state, reduced)
    late = state.rounds.votes.is_late(reduced)  # its weight has been counted
    if not late and (parted := overweight(state, reduced, now_s)):
        return [acknowledged, *parted]
    # A hub that begins anew must know of every Reduced that was acknowledged: its sender will not repeat it. A Commit
    # acknowledges all of its round's; those whose round waits for others are answered before they are repeated.
    kept = keep(state, RoundReduced(reduced), now_s)
    state.reductions.append((now_s, reduced))
    return [*kept, *check_round(state, now_s)]


def _vouched(state: HubState, reduced: Reduced) -> Reduced:
    """What a member has said, without a receipt that is none: so the journal holds none either."""
    if not reduced.receipt:
        return reduced
    tickets = state.rounds.tickets
    receipt = tickets.of_result(reduced.generation, reduced.round, reduced.told)
    known = bool(reduced.counted) and tickets.is_(reduced.receipt, receipt)
    return reduced if known else msgspec.structs.replace(reduced, receipt="")


def acknowledge(state: HubState, now_s: float) -> list[Effect]:
    """Answer the Reduced that have waited for a Commit for long, but for those of processes that are gone."""
    due = [reduced for heard_s, reduced in state.reductions if now_s - heard_s >= ACKNOWLEDGE_S]
    del state.reductions[: len(due)]  # they stand in the order of their coming
    return [Send(each.replica, Ack(each.seq)) for each in due if _is_here(state, each)]


def _is_here(state: HubState, reduced: Reduced) -> bool:
    member = state.members.get(reduced.replica)
    return member is not None and member.hello.incarnation == reduced.incarnation


def _drain(state: HubState, now_s: float) -> list[Effect]:
    """Nobody has data left: ship all that is buffered in one last round, then finish."""
    if not any(state.tally.pooled):
        return finish(state) if state.rounds.votes.behind is None else []  # a vote may still be on its way
    everything = tuple(range(state.plan.kpool.n))
    return [Drained(), *_fire(state, everything, Reason.FINAL, now_s)]


def _fire(state: HubState, adapters: tuple[int, ...], reason: Reason, now_s: float) -> list[Effect]:
    fire = state.rounds.next_fire(state.generation, adapters, state.present, reason)
    kept = keep(state, RoundFired(fire), now_s)
    state.ready_s, state.delayed_for = None, ()
    return [*kept, *order(state, fire, now_s)]
