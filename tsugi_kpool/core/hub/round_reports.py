"""What the members of one round have reported: who has reduced it, what each says that it gives, whom they blame."""

from __future__ import annotations

from tsugi_kpool.core.messages import Reduced

from .votes import blames, word


class RoundReports:
    """Begun anew when a round fires; kept until the next one does.

    Args:
        members: Of the round.
        shared: An exchange reduces it, and says it of everybody's parts to all.
    """

    def __init__(self, members: tuple[int, ...] = (), shared: bool = False) -> None:
        self._members, self._shared = members, shared
        self._said: dict[int, Reduced] = {}
        self.awaited = set(members)
        """Members that have not reported, and may."""
        self.gone: set[int] = set()
        """Members that have left since the round fired."""

    def take(self, reduced: Reduced) -> None:
        """A member's collective has ended."""
        self.awaited.discard(reduced.replica)
        self._said[reduced.replica] = reduced

    def go_on_without(self, replica: int) -> None:
        """A member has left: its report is not waited for. Its part may count all the same."""
        self.awaited.discard(replica)
        self.gone.add(replica)

    def digests(self) -> dict[int, str]:
        """What each member says that the round gives, with whom it blames: nobody leaves for one member's word."""
        return {replica: word(reduced) for replica, reduced in self._there.items()}

    def unusable(self) -> tuple[int, ...]:
        """Members whose parts are unusable, as those say who have reduced it; the first of them for all."""
        return next((each.unusable for each in self._there.values()), ())

    @property
    def blamer(self) -> int | None:
        """The owner that says that parts of the round are unusable, by those who have reduced it."""
        return next((each.blamer for each in self._there.values()), None)

    @property
    def decided(self) -> bool:
        """Whether enough members have reduced the round to settle it: all; or over an exchange one that shows what
        this has said, while nobody says anything else."""
        if not self.awaited:
            return True
        there = self._there.values()
        alike = len({word(each) for each in there}) == 1 and not any(blames(each) for each in there)
        return self._shared and alike and any(each.receipt for each in there)

    @property
    def of_one_word(self) -> bool:
        """Whether those who have reduced it say the same, and blame nobody."""
        return len(set(self.digests().values())) == 1 and not self.unusable()

    def for_all(self) -> Reduced | None:
        """What a member has said for all: without an exchange the first one, with one whoever says what all say."""
        if not self._shared:
            return self._said.get(self._members[0]) if self._members else None
        usual = next(iter(self.digests().values()), None)
        told = [each for _, each in sorted(self._said.items()) if each.counted and word(each) == usual]
        return next((each for each in told if each.receipt), told[0] if told else None)

    def durable(self) -> dict[int, int]:
        """How many of its samples each member says that the round makes durable."""
        return {replica: reduced.durable for replica, reduced in self._said.items()}

    def seconds(self) -> float:
        """Seconds of the collective for the member to which it was longest."""
        return max(each.seconds for each in self._said.values())

    def transfer_s(self) -> float:
        """Seconds of the collective for the member that joined it last, which waited for nobody."""
        return min(each.gather_s or each.seconds for each in self._said.values())

    @property
    def _there(self) -> dict[int, Reduced]:
        """What those say who have not left since: nobody is left out for the word of one who has gone."""
        return {replica: each for replica, each in self._said.items() if replica not in self.gone}
