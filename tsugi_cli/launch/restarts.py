"""Which replicas are to be started again, and when: a pure count of their falls."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

PAUSE_S = 1.0
"""Before the first restart of a replica; twice as long before each further one ..."""
LONGEST_S = 4.0
"""... but no longer than this: who allows a hundred restarts wants them."""


@dataclass
class Restarts:
    """A replica that dies comes back, unless it has died too often."""

    most: int = 0
    """Restarts of each replica in a run (topology.max_restarts)."""
    due: dict[int, float] = field(default_factory=dict)
    """Replica to when it is to be started."""
    begun: set[int] = field(default_factory=set)
    """Replicas that have been started again and may not have joined yet."""
    _falls: Counter[int] = field(default_factory=Counter)

    def fell(self, replica: int, now_s: float) -> None:
        """Its process has ended."""
        self.begun.discard(replica)
        self._falls[replica] += 1
        if self._falls[replica] <= self.most:
            self.due[replica] = now_s + min(LONGEST_S, PAUSE_S * 2 ** (self._falls[replica] - 1))

    def times(self, replica: int) -> int:
        """How often it has fallen."""
        return self._falls[replica]

    def ready(self, now_s: float) -> list[int]:
        """Those whose time has come; they count as started."""
        found = [replica for replica, due_s in self.due.items() if due_s <= now_s]
        for replica in found:
            del self.due[replica]
            self.begun.add(replica)
        return found
