"""When the hub orders a checkpoint, and what it knows of it: which positions' work is in those anchors."""

from __future__ import annotations

import msgspec

from tsugi_kpool.core.checkpoint import ANCHORS, part_name
from tsugi_kpool.core.effects import CheckpointOrdered, FleetStage
from tsugi_kpool.core.messages import Saved
from tsugi_kpool.core.settings import Mode

from .goodput import mean_loss
from .leasing import samples_trained, tokens_trained
from .ranges import count
from .state import HubState

MAX_REASON = 255
_SHA256_CHARS = 64
ASKED = 32
"""Of so many checkpoints the hub remembers whom it has asked: a file that comes later belongs to none that counts."""


def mark(state: HubState) -> list[CheckpointOrdered]:
    """A round has just been committed: if a checkpoint is wanted, it is one of this version.

    Not after the round that ships all that is left: the run's last checkpoint follows at once.
    """
    commit = state.rounds.newest_commit
    if not state.save_wanted or commit is None or state.stage is FleetStage.DRAINING:
        return []
    state.save_wanted = False
    state.rounds.newest_commit = msgspec.structs.replace(commit, save=True, writer=other_writer(state))
    return [order(state, final=False)]


def order(state: HubState, final: bool) -> CheckpointOrdered:
    """A checkpoint of this moment will come: its members are asked for their parts, and nobody else."""
    facts = ordered(state, final)
    state.asked[facts.version, final] = facts.members, facts.writer
    while len(state.asked) > ASKED:
        del state.asked[next(iter(state.asked))]
    return facts


def ordered(state: HubState, final: bool) -> CheckpointOrdered:
    """The facts at this moment, in which a round has been committed or the run has ended."""
    return CheckpointOrdered(
        version=state.rounds.version,
        final=final,
        done=state.leases.durable(),
        tokens=tokens_trained(state),
        trained=samples_trained(state) - count(state.plan.done),
        loss=mean_loss(member.beat for member in state.live() if member.beat),
        members=state.present,
        writer=_writer(state),
        digests=_digests(state),
    )


def other_writer(state: HubState) -> int | None:
    """Return who writes the anchors; None: the generation's first member.

    Over an exchange it is named in any case: the first member may have left since the generation was opened.
    """
    writer = _writer(state)
    return None if not state.plan.exchange and writer == min(state.present, default=0) else writer


def _writer(state: HubState) -> int:
    usable = [each for each in state.present if each not in state.passed_over]
    return min(usable or state.present, default=0)


def _digests(state: HubState) -> tuple[tuple[tuple[int, ...], str], ...]:
    """What members have agreed on, where it covers nothing but anchors. Of one member nobody else has said the same,
    and its anchors may differ from those of its last rounds by a rounding."""
    plain = bool(state.plan.exchange) and state.plan.kpool.mode == Mode.LOCAL and len(state.present) > 1
    return tuple(state.rounds.votes.agreed_on.items()) if plain else ()


def possible(state: HubState, saved: Saved) -> bool:
    """Whether a member may say this: of a file that it was asked for, and a reason that fits into a line."""
    return (
        saved.file in _asked_for(state, saved)
        and len(saved.sha256) in (0, _SHA256_CHARS)
        and len(saved.error) <= MAX_REASON
    )


def _asked_for(state: HubState, saved: Saved) -> tuple[str, ...]:
    """The files of this checkpoint that this replica writes: its own; who writes the anchors those, too.

    Of replicas from elsewhere this one alone writes any. A hub that has gone on from a journal does not know
    what was asked before.
    """
    own, asked = part_name(saved.replica), state.asked.get((saved.version, saved.final))
    if asked is None:
        return (own, ANCHORS) if state.resumed else ()
    members, writer = asked
    if saved.replica not in members:
        return ()
    if saved.replica == writer:
        return (own, ANCHORS)
    return () if saved.replica in state.slots.replicas else (own,)
