"""Reductions that a loop asks for: the sums of what all replicas say, once all have said it."""

from __future__ import annotations

from dataclasses import dataclass, field

from tsugi_kpool.core.effects import Effect, Send
from tsugi_kpool.core.messages import Ack, Figures, Totals

from .members import Member

KEPT = 8
"""Totals that are kept for whoever has lost them; nobody is further behind than one."""


@dataclass
class FiguresBook:
    """One reduction after the other: nobody begins the next before it has the totals of this one."""

    done: int = 0
    """Number of the newest reduction that is complete."""
    _parts: dict[int, Figures] = field(default_factory=dict)
    """Of the next one, by replica."""
    _totals: dict[int, tuple[int, dict[str, float]]] = field(default_factory=dict)

    def take(self, figures: Figures, live: list[Member]) -> list[Effect]:
        """A replica's part. Who has ended its loop, or has left, is not waited for."""
        if figures.number <= self.done:
            return [self._answer(figures)]
        self._parts[figures.replica] = figures
        awaited = [each.hello.replica for each in live if not each.drained]
        if any(replica not in self._parts for replica in awaited):
            return []
        self._add_up()
        answers: list[Effect] = [self._answer(each) for each in self._parts.values()]
        self._parts = {}
        return answers

    def _add_up(self) -> None:
        sums: dict[str, float] = {}
        for replica in sorted(self._parts):
            for name, value in self._parts[replica].sums.items():
                sums[name] = sums.get(name, 0.0) + value
        self.done += 1
        self._totals[self.done] = len(self._parts), sums
        self._totals.pop(self.done - KEPT, None)

    def _answer(self, figures: Figures) -> Send:
        found = self._totals.get(figures.number)
        if found is None:
            return Send(figures.replica, Ack(figures.seq))
        replicas, sums = found
        return Send(figures.replica, Totals(figures.seq, figures.number, replicas, sums))
