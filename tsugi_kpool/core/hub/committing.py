"""What follows when a round has been reduced everywhere and all its members say the same: it counts."""

from __future__ import annotations

from tsugi_kpool.core import events
from tsugi_kpool.core.effects import Effect
from tsugi_kpool.core.messages import Commit
from tsugi_kpool.core.records import RoundCommitted

from .changes import keep
from .checkpoint_orders import mark
from .evaluating import assign, wanted
from .orders import order
from .state import HubState


def is_enough(state: HubState, now_s: float) -> bool:
    """Whether the votes that are here are enough to commit the round in flight, which is decided.

    All have to vote where somebody has let go of it, who could not follow its Commit; and where its anchors become
    more than a version: what is saved or evaluated must be what most members have.
    """
    return state.rounds.complete or not (state.broken or state.save_wanted or wanted(state, now_s))


def commit_reduced(state: HubState, now_s: float) -> list[Effect]:
    """Commit the round in flight, which is decided, with one digest."""
    rounds, shared, by_all = state.rounds, state.rounds.shared, state.rounds.complete
    facts = rounds.facts()
    state.stragglers.round(rounds.reports.transfer_s(), now_s)
    pooled, step_s = tuple(state.tally.pooled), state.step_s()
    kept = keep(state, RoundCommitted(rounds.number, facts["version"], facts["digest"], pooled, step_s))
    if not shared:
        state.reductions.clear()  # the Commit acknowledges them
    return [
        *kept,
        *_resize(state, now_s),
        *(_put_to_use(state, now_s) if by_all else ()),
        *order(state, rounds.newest_commit or Commit(state.generation, rounds.number), now_s),
    ]


def _put_to_use(state: HubState, now_s: float) -> list[Effect]:
    """The version may be evaluated, and then become a checkpoint: so in this order."""
    return [*assign(state, now_s), *mark(state)]


def _resize(state: HubState, now_s: float) -> list[Effect]:
    """Fit the steps of slow replicas to the rounds' period; every change is an event."""
    if not state.plan.kpool.size_work or not state.plan.samples:
        return []
    measured = {
        replica: member.seconds_per_sample() for replica in state.present if (member := state.members[replica])
    }
    changes = state.sizes.committed(now_s, {replica: each for replica, each in measured.items() if each > 0.0})
    period_s = round(state.sizes.period_s, 4)
    return [events.Sized(replica, size, was, period_s) for replica, (was, size) in sorted(changes.items())]
