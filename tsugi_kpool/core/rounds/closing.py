"""When a round at an exchange is closed: with all parts, or without those that are not waited for any more. Pure.

    all parts are here                        at once
    a member has no connection                GONE_S after it broke: it has died, or comes too late
    enough parts are here (`quorum`)          when the grace is over, without those that are still on their way
    one of those has missed MOST_MISSES       then the round waits for it, for as long as `patience_s`

Whatever is decided here, nothing is lost and nothing counts twice: a part that was not counted stays in its sender's
buffer, and the next one holds it too. So the rule is about time alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from tsugi_kpool.core.settings import KPool

REPORTERS = 3
"""So many members tell the hub whose parts are in a result. More than one, because they may die; not all, because
with a thousand members each would name a thousand."""
GONE_S = 1.0
"""A connection that broke may come back: a client tries five times in this time."""
MOST_MISSES = 3
"""After so many rounds in a row without its part a round waits for a member."""
FIRST_GRACE_S = 5.0
"""The grace as long as nobody knows how often rounds come."""
LEAST_GRACE_S = 0.2
SHARE = 0.5
"""The grace takes this share of what a period leaves; the rest is for what the next period may be shorter by."""


@dataclass(frozen=True)
class Quorum:
    """Whom a round waits for.

    Args:
        share: Of the members whose parts must be here before anybody is left out for being slow.
        grace_s: How long the others are waited for from then on; None: by what the period leaves.
        patience_s: How long a member is waited for that has missed too often.
    """

    share: float = 1.0
    grace_s: float | None = None
    patience_s: float = 60.0

    def needed(self, members: int) -> int:
        """Return how many parts are enough."""
        return max(1, math.ceil(self.share * members))


@dataclass(frozen=True)
class Missing:
    """A member whose part is not here."""

    gone_s: float | None = None
    """Since when it has had no connection; None: it has one."""
    misses: int = 0
    """Rounds in a row in which its part was not counted."""


class Awaited:
    """The members of a round whose parts are not here.

    It is asked with every part that comes, so neither walks all members: with thousands that would be their square.

    Args:
        members: Of the round.
        misses: Member -> rounds in a row in which its part was not counted.
    """

    def __init__(self, members: Iterable[int], misses: Mapping[int, int]) -> None:
        self._missing = set(members)
        self._often = {each for each in self._missing if misses.get(each, 0) >= MOST_MISSES}

    def came(self, member: int) -> None:
        """Its part is here."""
        self._missing.discard(member)
        self._often.discard(member)

    def kinds(self, gone_s: Mapping[int, float], began_s: float) -> Iterator[Missing]:
        """Yield who is missing, for `closes_s`: each one that has gone, of the others one of those who are alike.

        Args:
            gone_s: Replicas without a connection -> since when; others than members, too.
            began_s: When the round began: nobody is taken for gone from it earlier.
        """
        gone = [each for each in gone_s if each in self._missing]
        for each in gone:
            yield Missing(max(gone_s[each], began_s), MOST_MISSES if each in self._often else 0)
        often = len(self._often) - sum(each in self._often for each in gone)
        if often:
            yield Missing(misses=MOST_MISSES)
        if len(self._missing) > len(gone) + often:
            yield Missing()


def quorum_of(kpool: KPool) -> Quorum:
    """Return whom the rounds of these settings wait for."""
    grace_s = None
    if isinstance(kpool.round_grace_s, float | int):
        grace_s = min(kpool.round_grace_s, kpool.round_timeout_s / 2)  # later there would be no time to reduce
    return Quorum(kpool.round_quorum, grace_s, kpool.round_timeout_s)


def closes_s(quorum: Quorum, grace_s: float, enough_s: float | None, missing: Iterable[Missing]) -> float:
    """Return when a round closes if nothing else comes: in the past if it is to be closed now, inf if it waits.

    Args:
        quorum: Whom it waits for.
        grace_s: How long those are waited for that are on their way.
        enough_s: Since when enough parts are here; None: they are not.
        missing: The members whose parts are not here.
    """
    latest = -math.inf
    for each in missing:
        latest = max(latest, min(_given_up_s(each), _late_s(quorum, grace_s, enough_s, each)))
    return latest


def _given_up_s(missing: Missing) -> float:
    return math.inf if missing.gone_s is None else missing.gone_s + GONE_S


def _late_s(quorum: Quorum, grace_s: float, enough_s: float | None, missing: Missing) -> float:
    if enough_s is None:
        return math.inf
    return enough_s + (quorum.patience_s if missing.misses >= MOST_MISSES else grace_s)


def grace_of(quorum: Quorum, period_s: float | None, took_s: float) -> float:
    """Return how long to wait for slow parts: no longer than the next round leaves.

    Args:
        quorum: A grace that is set counts.
        period_s: Between the beginnings of the two rounds before this one; None: there were none.
        took_s: From this round's beginning until enough parts were here.
    """
    if quorum.grace_s is not None:
        return quorum.grace_s
    if period_s is None:
        return FIRST_GRACE_S
    return max(LEAST_GRACE_S, SHARE * (period_s - took_s))


def missed(misses: dict[int, int], members: Iterable[int], counted: Iterable[int]) -> dict[int, int]:
    """Return how often in a row each member's part has not been counted, after a round of these members."""
    there = set(counted)
    return {member: 0 if member in there else misses.get(member, 0) + 1 for member in members}
