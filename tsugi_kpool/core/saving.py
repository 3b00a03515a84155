"""When the hub orders a checkpoint, and what it knows of it: which positions' work is in those anchors."""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec

from .checkpoint import ANCHORS, part_name
from .effects import Event, FleetStage
from .fleet import mean_loss
from .hub_state import HubState
from .messages import Saved

ORDERED = "checkpoint_ordered"
"""An event for the hub's owner: the files of this version will come, and this is the data ledger with it."""
WRITTEN = "checkpoint_part"
"""Another one: a replica has written a file of it, or could not."""
MAX_REASON = 255
_SHA256_CHARS = 64


@dataclass(frozen=True)
class Ordered:
    """What the hub knows of a checkpoint when it orders it."""

    version: int
    final: bool
    """The last one: nothing is buffered anywhere."""
    done: tuple[tuple[int, int], ...] = ()
    """Positions whose work has been committed for every adapter."""
    tokens: int = 0
    trained: int = 0
    """Samples that members have trained on in this run."""
    loss: float | None = None
    members: tuple[int, ...] = field(default=())


def mark(state: HubState) -> list[Event]:
    """A round has just been committed: if a checkpoint is wanted, it is one of this version.

    Not after the round that ships all that is left: the run's last checkpoint follows at once.
    """
    commit = state.rounds.newest_commit
    if not state.save_wanted or commit is None or state.stage is FleetStage.DRAINING:
        return []
    state.save_wanted = False
    state.rounds.newest_commit = msgspec.structs.replace(commit, save=True)
    return [Event(ORDERED, {"ordered": ordered(state, final=False)})]


def ordered(state: HubState, final: bool) -> Ordered:
    """The facts at this moment, in which a round has been committed or the run has ended."""
    beats = [member.beat for member in [*state.members.values(), *state.past] if member.beat]
    return Ordered(
        version=state.rounds.version,
        final=final,
        done=state.leases.durable(),
        tokens=sum(beat.tokens for beat in beats),
        trained=sum(beat.samples for beat in beats) - state.leases.replayed,
        loss=mean_loss(member.beat for member in state.live() if member.beat),
        members=state.present,
    )


def possible(saved: Saved) -> bool:
    """Whether a member may say this: its own file or the anchors, and a reason that fits into a line."""
    return (
        saved.file in (ANCHORS, part_name(saved.replica))
        and len(saved.sha256) in (0, _SHA256_CHARS)
        and len(saved.error) <= MAX_REASON
    )
