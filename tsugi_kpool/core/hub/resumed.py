"""A hub that went on from a journal finds out when that lacked something: a member knows what the hub does not.

A journal that is written before every answer lacks nothing; one that a full disk kept behind, or that was put back
from a copy, does. To go on from it would train samples twice and give two rounds one number.
"""

from __future__ import annotations

from tsugi_kpool.core.messages import Beat, LeaseRequest

from .state import HubState


def lost(state: HubState, message: Beat | LeaseRequest) -> str | None:
    """What the journal must have lacked, in words; None when this message says nothing of the kind."""
    if not state.resumed:
        return None
    if isinstance(message, Beat):
        return _lost_round(state, message)
    newest = state.leases.newest_ticket(message.replica)
    if message.ticket <= newest + 1:
        return None
    return _text(f"replica {message.replica} asks for its data range {message.ticket}, the hub knows of {newest}")


def _lost_round(state: HubState, beat: Beat) -> str | None:
    theirs, ours = (
        (beat.generation, beat.version, beat.reduced),
        (state.generation, state.rounds.version, state.rounds.number),
    )
    if all(their <= our for their, our in zip(theirs, ours, strict=True)):
        return None
    return _text(
        f"replica {beat.replica} stands at generation {beat.generation}, version {beat.version}, "
        f"round {beat.reduced}, "
        "the hub at {}, {}, {}".format(*ours)
    )


def _text(fact: str) -> str:
    return f"the hub's journal lacks records of this run: {fact}"
