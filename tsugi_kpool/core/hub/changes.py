"""How every record changes the hub's durable state: the same code when it happens and when a journal is replayed."""

from __future__ import annotations

import msgspec

from tsugi_kpool.core import records
from tsugi_kpool.core.effects import Effect, FleetStage, Keep
from tsugi_kpool.core.evaluation import stage_of
from tsugi_kpool.core.rounds.trigger import Reason

from .members import Member
from .state import HubState
from .telling import NOTHING, Seen, event_of, seen


def keep(state: HubState, record: records.AnyRecord, now_s: float = 0.0) -> list[Effect]:
    """Make a durable change: its record, and the event that it is told by.

    What stands after them may be sent once the record is on disk.
    """
    before = seen(state, record)
    apply(state, record, now_s)
    return kept(state, record, now_s, before)


def kept(state: HubState, record: records.AnyRecord, now_s: float, before: Seen = NOTHING) -> list[Effect]:
    """The same of a change that has been made."""
    event = event_of(state, record, now_s, before)
    return [Keep(record)] if event is None else [Keep(record), event]


def apply(state: HubState, record: records.AnyRecord, now_s: float) -> None:
    """Change the state as the record says. `now_s` is when, or in a replay when the new hub began."""
    match record:  # the frequent ones first
        case records.RoundReduced() | records.RoundFired() | records.RoundCommitted():
            _apply_round(state, record, now_s)
        case records.Leased():
            state.leases.take(record.replica, record.lease)
        case records.Joined():
            before = state.members.get(record.hello.replica)
            if before is not None:
                before.retire()
                state.past.append(before)
            state.waiting.add(record.hello.replica)
            state.quarantined.discard(record.hello.replica)
            state.members[record.hello.replica] = Member(record.hello, now_s, now_s)
        case records.GenerationOpened():
            _open(state, record, now_s)
        case records.KeyStored():
            state.store[record.key] = record.value
        case records.Evaluation() | records.EvaluationGiven():
            _apply_evaluation(state, record)
        case records.Left():
            _leave(state, record, now_s)
        case records.SlotGiven() | records.SeatFreed():
            _apply_slot(state, record, now_s)
        case records.Struck():
            state.strikes[record.replica] += 1
        case records.Skipped():
            state.skipped[record.incarnation, record.seq] = record
        case records.TurnedSlow():
            state.stragglers.slow_before(record)
        case records.Recovered():
            state.stragglers.recovered_before(record.replica)
        case records.Interrupted() | records.Finished() | records.RunFailed():
            _apply_ending(state, record)


def _open(state: HubState, record: records.GenerationOpened, now_s: float) -> None:
    """What belongs to the one before is forgotten: its round in flight, its rendezvous, its broken collectives."""
    state.generation, state.stage = record.generation, FleetStage.TRAINING
    state.present, state.newcomers, state.donor = record.members, record.newcomers, record.donor
    state.group_keys.incarnations = tuple(state.members[replica].hello.incarnation for replica in record.members)
    state.rounds.abort()
    _settle_departed(state)
    state.departed.due, state.opening.at_s = False, now_s
    if state.evaluation.given is not None and state.evaluation.given.version == state.rounds.version:
        # Whoever missed that Commit learns from the Generation that the round counts, and nothing else.
        state.evaluation.given = None
    state.store.clear()
    state.broken.clear()
    state.waiting.clear()
    for replica in record.members:
        state.members[replica].advanced_s = now_s


def _leave(state: HubState, record: records.Left, now_s: float) -> None:
    member = state.members[record.replica]
    state.waiting.discard(record.replica)
    state.rounds.forget(record.replica, now_s)
    if not record.reason:
        member.gone = True
        return
    member.lost = record.reason
    if state.evaluation.given is not None and state.evaluation.given.replica == record.replica:
        state.evaluation.given = None  # still due: the next commit gives it to another
    del state.strikes[record.replica]
    if record.quarantined:
        state.quarantined.add(record.replica)
    state.parting.discard(record.replica)
    if record.reason == records.PARTED:
        member.gone = True
    state.fenced[member.hello.incarnation] = record.reason
    state.last_left = f"replica {record.replica} ({record.reason})"
    state.tally.remove(member.beat)
    if goes_on(state, record):
        state.rounds.go_on_without(record.replica)
        state.departed.members[record.replica], state.departed.due = member, True
        state.present = tuple(each for each in state.present if each != record.replica)
        state.leases.depart(record.replica, record.trained)
    else:
        state.leases.release(record.replica, record.trained)
        # Who waits for its first generation is missed by nobody.
        if record.replica in state.present and between_rounds(state) and _others_than(state, record.replica):
            state.departed.due = True
            state.present = tuple(each for each in state.present if each != record.replica)


def between_rounds(state: HubState) -> bool:
    """Whether nothing waits for the next generation of those who are left: over an exchange, between two rounds."""
    return bool(state.plan.exchange) and state.training and state.rounds.in_flight is None


def goes_on(state: HubState, record: records.Left) -> bool:
    """Whether the round in flight goes on without this one: over an exchange, while others are there.

    Not when its numbers cannot be: then nothing of it may count.
    """
    if record.quarantined or record.replica not in state.present or not state.rounds.survives(record.replica):
        return False
    return _others_than(state, record.replica)


def _others_than(state: HubState, replica: int) -> bool:
    return any(state.members[each].here for each in state.present if each != replica)


def _settle_departed(state: HubState) -> None:
    """The round is decided in which these have left."""
    state.departed.members.clear()
    state.leases.release_departed()


def _commit_round(state: HubState, record: records.RoundCommitted) -> None:
    for replica, durable in state.rounds.durable().items():
        member = state.departed.members.get(replica)
        (state.leases.settle if member is None else state.leases.settle_departed)(replica, durable)
        member = member or state.members[replica]
        member.durable_samples = max(member.durable_samples, durable)
    for replica, tokens in state.rounds.commit(record.pooled, record.step_s).items():
        member = state.departed.members.get(replica)
        (member or state.members[replica]).committed_tokens += tokens
        if tokens and member is None:
            del state.strikes[replica]
    _settle_departed(state)
    state.retries = 0


def _apply_evaluation(state: HubState, record: records.Evaluation | records.EvaluationGiven) -> None:
    match record:
        case records.EvaluationGiven():
            state.evaluation.given, commit = record, state.rounds.newest_commit
            if commit is not None:
                state.rounds.newest_commit = msgspec.structs.replace(commit, evaluator=record.replica)
        case records.Evaluation(told):
            state.evaluations[told.stage, told.replica] = told
            given = state.evaluation.given
            if given is not None and (stage_of(given.version), given.replica) == (told.stage, told.replica):
                state.evaluation.given, state.evaluation.at = None, given.at


def _apply_round(
    state: HubState, record: records.RoundFired | records.RoundReduced | records.RoundCommitted, now_s: float
) -> None:
    match record:
        case records.RoundReduced(reduced):
            state.rounds.on_reduced(reduced, now_s)
            state.members[reduced.replica].formed = True
        case records.RoundFired(fire):
            state.rounds.open(fire, now_s)
            state.contact.unformed = ""
            if fire.reason == Reason.FINAL:
                state.stage = FleetStage.DRAINING
        case records.RoundCommitted():
            state.contact.unreached.clear()
            _commit_round(state, record)


def _apply_slot(state: HubState, record: records.SlotGiven | records.SeatFreed, now_s: float) -> None:
    match record:
        case records.SlotGiven():
            state.slots.hold(record.ticket, record.replica, now_s)
        case records.SeatFreed():
            state.slots.release(record.replica)
            if state.stage is not FleetStage.GATHERING:
                return  # what a process that has left had done still counts
            state.waiting.discard(record.replica)
            del state.strikes[record.replica]
            member = state.members.pop(record.replica, None)
            if member is not None:
                state.fenced[member.hello.incarnation] = record.reason or "its seat was given back"
                state.tally.remove(member.beat)
                state.leases.release(record.replica, 0)


def _apply_ending(state: HubState, record: records.Interrupted | records.Finished | records.RunFailed) -> None:
    match record:
        case records.Interrupted():
            state.interrupted = state.leases.closed = True
            state.evaluation.stopped_early = record.early
            if record.over:
                state.stage = FleetStage.INTERRUPTED
        case records.Finished():
            state.stage = FleetStage.FINISHED
        case records.RunFailed():
            state.stage = FleetStage.FAILED
            state.failure, state.failed_replica = record.reason, record.replica
            state.quorum_failed = record.quorum
            state.rounds.abort()
