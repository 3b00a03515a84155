"""Members that say of each other what nobody can prove: who leaves for it. Pure.

One says that another has told it something else than all others, and shows no signature; the other shows what it has
signed. One of the two lies, and nobody can tell which. So the first time nobody leaves: the round is tried again. Who
disputes with a second member leaves, because for an honest one it takes two liars. The same two for the second time
both leave. So a liar takes one honest member along at most, and most take none.

Places count, not processes: a machine whose process is started again is the same machine. Who has left keeps its
disputes, and those that it had them with lose them: that it had to leave speaks for them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

SECOND = 2
"""Disputes with so many others are one's own fault."""

Pair = frozenset[int]
"""Two replicas."""


@dataclass
class Disputes:
    """The disputes of a run so far. A hub that begins anew knows none: then one more round is dropped."""

    partners: dict[int, set[int]] = field(default_factory=dict)
    """Replica -> with whom it has disputed."""

    def add(self, found: Iterable[Pair]) -> set[int]:
        """Take in the disputes of a round; returns who leaves.

        Those with the most disputes leave, until each dispute that has to end has lost one of its two.
        """
        new = set(found)
        known = {pair for pair in new if any(pair - {each} <= self._of(each) for each in pair)}
        for pair in new:
            for each in pair:
                self._of(each).update(pair - {each})
        counts = Counter({each: len(self._of(each)) for pair in new for each in pair})
        due = [pair for pair in new if pair in known or max(counts[each] for each in pair) >= SECOND]
        leaving: set[int] = set()
        while due:
            most = max(counts[each] for pair in due for each in pair)
            leaving |= {each for pair in due for each in pair if counts[each] == most}
            due = [pair for pair in due if not pair & leaving]
        self.settle(leaving)
        return leaving

    def settle(self, left: Collection[int]) -> None:
        """These leave for what they have done: their disputes are held against nobody else any more."""
        for replica, partners in self.partners.items():
            if replica not in left:
                partners.difference_update(left)

    def _of(self, replica: int) -> set[int]:
        return self.partners.setdefault(replica, set())
