"""Restarts: which replicas are started again, and when. A pure count of their ends."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

PAUSE_S = 1.0
"""Pause before the first restart of a replica. It doubles before each further one ..."""
LONGEST_S = 4.0
"""... up to this: whoever allows a hundred restarts wants them."""


@dataclass
class Restarts:
    """Restarts replicas that have died, each up to `most` times."""

    most: int = 0
    """Restarts of each replica in a run (topology.max_restarts)."""
    due: dict[int, float] = field(default_factory=dict)
    """Replica -> when it is started again."""
    begun: set[int] = field(default_factory=set)
    """Replicas that have been restarted and may not have joined yet."""
    _falls: Counter[int] = field(default_factory=Counter)

    def fell(self, replica: int, now_s: float) -> None:
        """Count the end of a replica's process, and plan its restart."""
        self.begun.discard(replica)
        self._falls[replica] += 1
        if self._falls[replica] <= self.most:
            self.due[replica] = now_s + min(LONGEST_S, PAUSE_S * 2 ** (self._falls[replica] - 1))

    def times(self, replica: int) -> int:
        """Return how often a replica's process has ended."""
        return self._falls[replica]

    def ready(self, now_s: float) -> list[int]:
        """Return the replicas to start now; they count as started."""
        found = [replica for replica, due_s in self.due.items() if due_s <= now_s]
        for replica in found:
            del self.due[replica]
            self.begun.add(replica)
        return found
