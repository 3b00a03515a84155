"""The event that follows from a record of the journal: the one place where events are derived from records.

An event is told by what the record says and by the hub's state around it. `seen` keeps what the record's change is
about to clear; `event_of` is asked when the state has changed.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec

from tsugi_kpool.core import events, records
from tsugi_kpool.core.evaluation import best, finite_loss, losses, version_in, worse_since
from tsugi_kpool.core.messages import Fire

from .state import HubState


class Seen(NamedTuple):
    """The state before a change, as far as its event needs it."""

    round: dict[str, Any]
    """Of a round that is about to be committed."""
    k: int
    replayed: int
    durable: int
    """Samples of the one who leaves whose work stays."""


NOTHING = Seen({}, 0, 0, 0)


def seen(state: HubState, record: records.AnyRecord) -> Seen:
    """Return what the event needs of the state before this record changes it."""
    if isinstance(record, records.RoundCommitted):
        return Seen(state.rounds.facts(), _k(state), 0, 0)
    if isinstance(record, records.Left):
        return Seen({}, 0, state.leases.replayed, state.leases.settled(record.replica))
    return NOTHING


def event_of(state: HubState, record: records.AnyRecord, now_s: float, before: Seen = NOTHING) -> events.Event | None:
    """Return the event that reports a record; None for records that nobody is told of.

    Args:
        state: The hub's, changed by the record.
        record: What has been decided. The type checker misses one that has no case here.
        now_s: When.
        before: What `seen` has kept.
    """
    match record:
        case records.RoundReduced() | records.Leased() | records.KeyStored() | records.SlotGiven() | records.Began():
            return None  # each would be a line a step, or says nothing to a person
        case records.RoundFired():
            return _fired(state, record.fire, now_s)
        case records.RoundCommitted():
            return events.Committed(**before.round, k=None if _k(state) == before.k else _k(state))
        case records.Joined():
            return events.Joined(record.hello.replica, record.hello.host, record.hello.pid)
        case records.GenerationOpened():
            return events.Generation(record.generation, record.members)
        case records.Evaluation():
            told = record.evaluated
            version = version_in(told.stage)
            loss = None if version is None else finite_loss(told.sums)
            return events.Evaluated(told.replica, told.stage, told.sums, version or 0, loss)
        case records.EvaluationGiven():
            return events.Evaluating(record.replica, record.version)
        case records.Left():
            return _left(state, record, before)
        case records.SeatFreed():
            return events.SeatFreed(record.replica, record.reason)
        case records.Struck():
            return events.Discarded(record.replica, record.reason, record.tokens, state.strikes[record.replica])
        case records.Skipped():
            return events.Skipped(record.replica, record.reason, record.batches, record.tokens)
        case records.TurnedSlow():
            return _slow(state, record.replica, now_s)
        case records.Recovered():
            return events.Recovered(record.replica, record.seconds, record.step_s)
        case records.Interrupted():
            return _interrupted(state, record)
        case records.Finished():
            return _finished(state)
        case records.RunFailed():
            return events.Failed(record.replica, record.reason)


def _k(state: HubState) -> int:
    auto = state.rounds.selection.auto
    return auto.usual if auto else 0


def _fired(state: HubState, fire: Fire, now_s: float) -> events.Event:
    told = events.Fired(fire.round, fire.adapters, str(fire.reason), state.pooled(fire.adapters))
    if not state.delayed_for or state.ready_s is None:
        return told
    delayed_s = round(now_s - state.ready_s, 4)
    return msgspec.structs.replace(told, delayed_s=delayed_s, delayed_for=tuple(sorted(state.delayed_for)))


def _left(state: HubState, record: records.Left, before: Seen) -> events.Event | None:
    if not record.reason:
        return None  # a good-bye after the end
    hello, again = state.members[record.replica].hello, state.leases.replayed - before.replayed
    if record.replica in state.departed.members:  # as much, unless its part of the round in flight counts
        again = state.leases.at_stake(record.replica)
    told = events.Left(record.replica, hello.host, record.reason, again, before.durable, hello.incarnation)
    return msgspec.structs.replace(told, quarantined=record.quarantined)


def _slow(state: HubState, replica: int, now_s: float) -> events.Event | None:
    slowness = state.stragglers.of(replica, now_s).slowness
    return events.Slow(replica, **msgspec.structs.asdict(slowness)) if slowness is not None else None


def _interrupted(state: HubState, record: records.Interrupted) -> events.Event:
    if not record.early:
        return events.Deserted(state.rounds.version) if record.deserted else events.Interrupted()
    known = losses(state.evaluations)
    version = best(known) or 0
    return events.StoppedEarly(version, known.get(version), worse_since(list(known.values())))


def _finished(state: HubState) -> events.Event:
    """Of a run whose last replica was taken back when all was done, too: it has finished, and was not stopped."""
    stopped = state.interrupted and any(member.here for member in state.members.values())
    return (events.Stopped if stopped else events.Finished)(state.rounds.version)
