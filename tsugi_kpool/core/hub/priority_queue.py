"""What the hub has heard and not handled yet: what somebody waits for comes before telemetry.

A beat says how far its replica has come in all, so one that has not been handled yet is replaced by the next of the
same connection, in its place: a hub that is short of time knows everybody's newest progress, and less of what lay
between. Beats may be lost; this is how.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import NamedTuple

from tsugi_kpool.core.messages import (
    Beat,
    Checked,
    Compared,
    Hello,
    LeaseRequest,
    Message,
    Reduced,
    StoreGet,
    StorePut,
)

URGENT = frozenset({Hello, Reduced, Checked, Compared, LeaseRequest, StorePut, StoreGet})
"""A round, a training thread or a group that forms waits for these. Whatever else a replica says keeps its order."""
USUAL_BATCH = 32
"""Others that are handled in one turn: less than a millisecond until what is urgent is looked for again."""
LEAST_BATCH = 8
"""And while there are urgent ones: nobody can keep the hub from hearing the rest."""
FULL = 4_000
"""With so many nothing more is taken from the socket: their senders notice, and beat less often."""


class Heard(NamedTuple):
    """A message that may be heard, and the connection that it came over."""

    route: bytes
    message: Message


class PriorityQueue:
    """Owned by the hub's thread."""

    def __init__(self) -> None:
        self._urgent: list[Heard] = []
        self._others: deque[bytes | Heard] = deque()
        """In the order of their coming; of a beat only the route, for the beat may be replaced."""
        self._beats: dict[bytes, Message] = {}
        """Route -> the newest beat that came over it and has not been handled."""
        self.replaced = 0
        """Beats that newer ones have come before."""

    def __bool__(self) -> bool:
        return bool(self._urgent or self._others)

    @property
    def full(self) -> bool:
        """Whether it must be worked off before more is heard."""
        return len(self._others) >= FULL

    def put(self, heard: Iterable[Heard]) -> None:
        """These have come, in this order."""
        beats, others = self._beats, self._others
        for each in heard:
            if type(each.message) is Beat:
                if each.route in beats:
                    self.replaced += 1
                else:
                    others.append(each.route)
                beats[each.route] = each.message
            else:
                (self._urgent if type(each.message) in URGENT else others).append(each)

    def take(self) -> list[Heard]:
        """What is to be handled now: all that is urgent, and some of the others."""
        taken, self._urgent = self._urgent, []
        for _ in range(min(len(self._others), LEAST_BATCH if taken else USUAL_BATCH)):
            next_ = self._others.popleft()
            taken.append(next_ if isinstance(next_, Heard) else Heard(next_, self._beats.pop(next_)))
        return taken
