"""Whether the hub's own machine may be cut off: all its replicas are elsewhere, and none of them has been heard.

Then nobody can tell who has gone. Whoever is judged dead by its silence would have to join again, and with the last
one the run would end. So nobody is judged until somebody is heard, or `quorum_timeout_s` is over.
"""

from __future__ import annotations

from tsugi_kpool.core.effects import Effect
from tsugi_kpool.core.events import Note

from .state import HubState

DEAF_S = 2.0
"""When nobody has been heard for so long nobody is judged; no more than half of what one replica is given."""
CUT_OFF = "no replica has been heard since {since:.0f} s into the run: is this machine cut off? All are waited for"
BACK = "replicas are heard again"
GRACE_S = 5.0
"""Time to be heard for the others when the first one is."""


def judges_nobody(state: HubState, now_s: float) -> tuple[bool, list[Effect]]:
    """Return whether nobody may be judged now, and what is said of it when that begins and ends."""
    heard_s = _heard_s(state)
    silent_s = 0.0 if heard_s is None else now_s - heard_s
    limit_s = state.plan.silent_timeout_s or 2 * DEAF_S
    if not min(DEAF_S, limit_s / 2) < silent_s < state.plan.quorum_timeout_s:
        return _heard_again(state, now_s, silent_s <= limit_s)
    state.contact.deaf = True
    if state.contact.unheard or silent_s <= limit_s:
        return True, []
    state.contact.unheard = CUT_OFF.format(since=now_s - silent_s - state.started_s)
    return True, [Note(state.contact.unheard)]


def _heard_again(state: HubState, now_s: float, heard: bool) -> tuple[bool, list[Effect]]:
    """Somebody is heard, or has been silent for too long; after a silence the others get the time to be heard."""
    was_deaf, said = state.contact.deaf, heard and bool(state.contact.unheard)
    state.contact.deaf, state.contact.unheard = False, ""
    if was_deaf:
        state.grace_until_s = now_s + GRACE_S
    return was_deaf, [Note(BACK)] if said else []


def _heard_s(state: HubState) -> float | None:
    """Return when a replica was heard last; None where one of them is on this machine, or none is there."""
    present = state.present
    if not present or not all(replica in state.slots.replicas for replica in present):
        return None
    return max(state.members[replica].heard_s for replica in present)
