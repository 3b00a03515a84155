"""What follows when a round has landed everywhere and all its members say the same: it counts."""

from __future__ import annotations

from tsugi_kpool.core.effects import Effect, Event
from tsugi_kpool.core.messages import Commit
from tsugi_kpool.core.records import RoundCommitted

from .changes import keep
from .orders import order
from .saving import mark
from .state import HubState


def commit_landed(state: HubState, now_s: float) -> list[Effect]:
    """Commit the round in flight, which has landed everywhere with one digest."""
    rounds = state.rounds
    facts, auto = rounds.facts(), rounds.selection.auto
    state.phase.round(rounds.transfer_s(), now_s)
    k_before = auto.usual if auto else 0
    pooled, micro_step_s = tuple(state.tally.pooled), state.micro_step_s()
    kept = keep(state, RoundCommitted(rounds.number, facts["version"], facts["digest"], pooled, micro_step_s))
    state.landings.clear()  # the Commit acknowledges them
    if auto and auto.usual != k_before:
        facts["k"] = auto.usual
    return [
        kept,
        Event("committed", facts),
        *_resize(state, now_s),
        *mark(state),
        *order(state, rounds.newest_commit or Commit(state.epoch, rounds.number), now_s),
    ]


def _resize(state: HubState, now_s: float) -> list[Event]:
    """Fit the micro-steps of slow replicas to the rounds' period; every change is an event."""
    if not state.plan.kpool.size_work or not state.plan.samples:
        return []
    measured = {
        replica: member.seconds_per_sample() for replica in state.present if (member := state.members[replica])
    }
    changes = state.sizes.committed(now_s, {replica: each for replica, each in measured.items() if each > 0.0})
    period_s = round(state.sizes.period_s, 4)
    return [
        Event("sized", {"replica": replica, "micro_batch": size, "was": was, "period_s": period_s})
        for replica, (was, size) in sorted(changes.items())
    ]
