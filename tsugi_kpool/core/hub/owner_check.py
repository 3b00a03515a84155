"""Whether the owners of a two-stage round have summed right: who checks whom, and what follows from what they say.

With owners a wrong sum is the same wrong bits for all, so that digests agree. Therefore the hub draws one owner and
one other member, once all have reduced a round and nobody can change what it has sent. That member gets what the
owner got, and sums again. It is not believed alone: when it finds something wrong, all members check that owner, and
most of them say who leaves.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from tsugi_kpool.core.messages import Check
from tsugi_kpool.core.rounds.reduction import CHECK_SHARE

DRAWS = 2**32
"""Each of the three numbers of a draw is one of so many."""


def drawn(secret: str, generation: int, round: int, members: tuple[int, ...]) -> Check | None:
    """Draw who is checked by whom in this round; None when nobody is.

    Args:
        secret: Known to the hub alone: an owner that knew the draw would lie in other rounds.
        generation: The round's.
        round: Its number.
        members: The round's, at least two.
    """
    lot = hashlib.sha256(f"{secret}:{generation}:{round}".encode()).digest()
    whether, which, whose = (int.from_bytes(lot[at : at + 4], "big") for at in (0, 4, 8))
    if not secret or whether >= CHECK_SHARE * DRAWS:
        return None
    owner = members[which % len(members)]
    others = [member for member in members if member != owner]
    return Check(generation, round, owner, (others[whose % len(others)],))


@dataclass(frozen=True)
class Finding:
    """What follows from a check."""

    accusers: tuple[int, ...] = ()
    """Members who have said that somebody is wrong."""
    convicted: tuple[int, ...] = ()
    """Whom more than half of all members say to be wrong."""

    @property
    def clear(self) -> bool:
        """Whether nobody has found anything wrong."""
        return not self.accusers


def finding(check: Check, said: Mapping[int, tuple[int, ...]]) -> Finding:
    """Count what the checkers have said.

    Args:
        check: What was ordered.
        said: Of each member, whom it has found to be wrong.
    """
    accusers = tuple(sorted(each for each in check.checkers if said.get(each)))
    votes = Counter(wrong for each in accusers for wrong in set(said[each]) if wrong != each)
    return Finding(accusers, tuple(sorted(each for each, count in votes.items() if 2 * count > len(said))))
