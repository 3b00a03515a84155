"""What the hub has heard and not handled yet: what somebody waits for comes before telemetry."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from tsugi_kpool.core.messages import Hello, Landed, LeaseRequest, StoreGet, StorePut

from .door import Heard

URGENT = frozenset({Hello, Landed, LeaseRequest, StorePut, StoreGet})
"""A round, a training thread or a group that forms waits for these. Whatever else a replica says keeps its order."""
USUAL_BATCH = 32
"""Others that are handled in one turn: less than a millisecond until what is urgent is looked for again."""
LEAST_BATCH = 8
"""And while there are urgent ones: nobody can keep the hub from hearing the rest."""
FULL = 4_000
"""With so many nothing more is taken from the socket: their senders notice, and beat less often."""


class Inbox:
    """Owned by the hub's thread."""

    def __init__(self) -> None:
        self._urgent: list[Heard] = []
        self._others: deque[Heard] = deque()

    def __bool__(self) -> bool:
        return bool(self._urgent or self._others)

    @property
    def full(self) -> bool:
        """Whether it must be worked off before more is heard."""
        return len(self._others) >= FULL

    def put(self, heard: Iterable[Heard]) -> None:
        """These have come, in this order."""
        for each in heard:
            (self._urgent if type(each.message) in URGENT else self._others).append(each)

    def take(self) -> list[Heard]:
        """What is to be handled now: all that is urgent, and some of the others."""
        taken, self._urgent = self._urgent, []
        count = min(len(self._others), LEAST_BATCH if taken else USUAL_BATCH)
        return taken + [self._others.popleft() for _ in range(count)]
