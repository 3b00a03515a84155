"""Which event follows from a record of the journal: the one place where events are derived from records.

An event is told by what the record says and by the hub's state around it. `seen` keeps what the record's change is
about to clear; `event_of` is asked when the state has changed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec

from tsugi_kpool.core import events, records

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
Telling = Callable[[HubState, Any, float, Seen], events.Event | None]


def seen(state: HubState, record: records.AnyRecord) -> Seen:
    """What is to be known of the state before this record changes it."""
    if isinstance(record, records.RoundCommitted):
        return Seen(state.rounds.facts(), _k(state), 0, 0)
    if isinstance(record, records.Left):
        return Seen({}, 0, state.leases.replayed, state.leases.settled(record.replica))
    return NOTHING


def event_of(state: HubState, record: records.AnyRecord, now_s: float, before: Seen = NOTHING) -> events.Event | None:
    """The event that a record is told by; None for those that nobody is told of.

    Args:
        state: The hub's, changed by the record.
        record: What has been decided.
        now_s: When.
        before: What `seen` has kept.
    """
    telling = _TELLING.get(type(record))
    return telling(state, record, now_s, before) if telling is not None else None


def _k(state: HubState) -> int:
    auto = state.rounds.selection.auto
    return auto.usual if auto else 0


def _joined(state: HubState, record: records.Joined, now_s: float, before: Seen) -> events.Event:  # noqa: ARG001
    return events.Joined(record.hello.replica, record.hello.host, record.hello.pid)


def _fired(state: HubState, record: records.RoundFired, now_s: float, before: Seen) -> events.Event:  # noqa: ARG001
    fire = record.fire
    told = events.Fired(fire.round, fire.adapters, str(fire.reason), state.pooled(fire.adapters))
    if not state.delayed_for or state.ready_s is None:
        return told
    delayed_s = round(now_s - state.ready_s, 4)
    return msgspec.structs.replace(told, delayed_s=delayed_s, delayed_for=tuple(sorted(state.delayed_for)))


def _committed(state: HubState, record: records.RoundCommitted, now_s: float, before: Seen) -> events.Event:  # noqa: ARG001
    k = _k(state)
    return events.Committed(**before.round, k=k if k != before.k else None)


def _evaluated(state: HubState, record: records.Evaluation, now_s: float, before: Seen) -> events.Event:  # noqa: ARG001
    told = record.evaluated
    return events.Evaluated(told.replica, told.stage, told.sums)


def _left(state: HubState, record: records.Left, now_s: float, before: Seen) -> events.Event | None:  # noqa: ARG001
    if not record.reason:
        return None  # a good-bye after the end
    hello, again = state.members[record.replica].hello, state.leases.replayed - before.replayed
    told = events.Left(record.replica, hello.host, record.reason, again, before.durable, hello.incarnation)
    return msgspec.structs.replace(told, quarantined=record.quarantined)


def _discarded(state: HubState, record: records.Struck, now_s: float, before: Seen) -> events.Event:  # noqa: ARG001
    return events.Discarded(record.replica, record.reason, record.tokens, state.strikes[record.replica])


def _slow(state: HubState, record: records.TurnedSlow, now_s: float, before: Seen) -> events.Event | None:  # noqa: ARG001
    slowness = state.stragglers.of(record.replica, now_s).slowness
    return events.Slow(record.replica, **msgspec.structs.asdict(slowness)) if slowness is not None else None


def _interrupted(state: HubState, record: records.Interrupted, now_s: float, before: Seen) -> events.Event:  # noqa: ARG001
    return events.Deserted(state.rounds.version) if record.deserted else events.Interrupted()


def _finished(state: HubState, record: records.Finished, now_s: float, before: Seen) -> events.Event:  # noqa: ARG001
    stopped = state.interrupted and any(member.here for member in state.members.values())
    return (events.Stopped if stopped else events.Finished)(state.rounds.version)


_TELLING: dict[type, Telling] = {
    records.Joined: _joined,
    records.SeatFreed: lambda _, record, *__: events.SeatFreed(record.replica, record.reason),
    records.GenerationOpened: lambda _, record, *__: events.Generation(record.generation, record.members),
    records.RoundFired: _fired,
    records.RoundCommitted: _committed,
    records.Evaluation: _evaluated,
    records.Left: _left,
    records.Struck: _discarded,
    records.TurnedSlow: _slow,
    records.Recovered: lambda _, record, *__: events.Recovered(record.replica, record.seconds, record.step_s),
    records.Interrupted: _interrupted,
    records.Finished: _finished,
    records.RunFailed: lambda _, record, *__: events.Failed(record.replica, record.reason),
}
"""Records that are told; the others are the hub's own business (`RoundReduced`, `Leased`, `KeyStored`, ...)."""
