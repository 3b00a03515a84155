"""Members that say of each other what nobody can prove: who leaves for it. Pure.

One says that another has told it something else than all others, and shows no signature; the other shows what it has
signed. One of the two lies, and nobody can tell which. So the first time nobody leaves: the round is tried again. Who
disputes with a second member leaves, because for an honest one it takes two liars. The same two for the second time
both leave. So a liar takes one honest member along at most, and most take none.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

SECOND = 2
"""Disputes with so many others are one's own fault."""

Pair = frozenset[str]
"""Two processes, by their incarnations."""


@dataclass
class Disputes:
    """The disputes of a run so far. A hub that begins anew knows none: then one more round is dropped."""

    known: set[Pair] = field(default_factory=set)

    def add(self, found: Iterable[Pair]) -> set[str]:
        """Take in the disputes of a round; returns who leaves.

        Those with the most disputes leave, until each dispute that has to end has lost one of its two.
        """
        new = set(found)
        counts = Counter(each for pair in self.known | new for each in pair)
        due = [pair for pair in new if pair in self.known or max(counts[each] for each in pair) >= SECOND]
        self.known |= new
        leaving: set[str] = set()
        while due:
            most = max(counts[each] for pair in due for each in pair)
            leaving |= {each for pair in due for each in pair if counts[each] == most}
            due = [pair for pair in due if not pair & leaving]
        return leaving
