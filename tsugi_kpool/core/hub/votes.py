"""What members say that a round gives: their votes, and the digests on which all have agreed. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tsugi_kpool.core.messages import Fire, Reduced


@dataclass
class Votes:
    """Of a round that was committed before all had voted: who has not, and what the others have said."""

    fire: Fire
    awaited: set[int]
    said: dict[int, str]

    @property
    def key(self) -> tuple[int, int]:
        """Generation and round."""
        return self.fire.generation, self.fire.round

    @property
    def settled(self) -> bool:
        """Whether all that are there have said the same."""
        return not self.awaited and len(set(self.said.values())) <= 1

    @property
    def digest(self) -> str:
        """The digest that all have said, once that is settled; empty where nobody is left who has said one."""
        return next(iter(self.said.values()), "").partition(" ")[0]


def blames(reduced: Reduced) -> bool:
    """Whether it names members whose parts are unusable, or an owner that says so."""
    return bool(reduced.unusable) or reduced.blamer is not None


def word(reduced: Reduced) -> str:
    """What it says that the round gives, with whom it blames, in one word."""
    said = f"{reduced.digest} {reduced.told}" if reduced.told else reduced.digest
    return f"{said} unusable {reduced.unusable} by {reduced.blamer}" if blames(reduced) else said


def agreed_on(
    before: Mapping[tuple[int, ...], str], adapters: tuple[int, ...], digest: str
) -> dict[tuple[int, ...], str]:
    """Return what all have said of the present anchors: adapters of one round -> its digest.

    Args:
        before: The same before this round.
        adapters: Of the round. A digest is that of all adapters of its round together: when one of them moves on, it
            says nothing of the others any more.
        digest: What its members have said; empty while not all have: the first word may be the one that is wrong.
    """
    kept = {each: said for each, said in before.items() if not set(each) & set(adapters)}
    return {**kept, adapters: digest} if digest else kept


class VoteBook:
    """Votes on the newest committed round while some are awaited, and what all have said of the present anchors."""

    def __init__(self) -> None:
        self.behind: Votes | None = None
        """Those on the round that was committed last, if that was before all had voted, until they are settled."""
        self.agreed_on: dict[tuple[int, ...], str] = {}
        """Adapters of one round -> its digest, where they have not moved since."""

    def committed(self, fire: Fire, awaited: set[int], said: dict[int, str], digest: str) -> None:
        """A round is committed.

        Args:
            fire: The round.
            awaited: Members that have not voted.
            said: What the others have said.
            digest: Of the round.
        """
        self.behind = Votes(fire, set(awaited), said) if awaited else None
        self.agreed_on = agreed_on(self.agreed_on, fire.adapters, "" if self.behind else digest)

    def is_late(self, reduced: Reduced) -> bool:
        """Whether it is a vote on the round that was committed last, and was waited for."""
        behind = self.behind
        if behind is None or (reduced.generation, reduced.round) != behind.key:
            return False
        return reduced.replica in behind.awaited

    def take(self, reduced: Reduced) -> bool:
        """A late vote has come; returns whether the votes are settled with it."""
        if self.behind is not None:
            self.behind.awaited.discard(reduced.replica)
            self.behind.said[reduced.replica] = word(reduced)
        return self._settle()

    def forget(self, replica: int) -> bool:
        """A member has left: its vote counts no more, and is not waited for. Returns whether all are
        settled then."""
        if self.behind is not None:
            self.behind.awaited.discard(replica)
            self.behind.said.pop(replica, None)
        return self._settle()

    def _settle(self) -> bool:
        if self.behind is None or not self.behind.settled:
            return False
        self.agreed_on = agreed_on(self.agreed_on, self.behind.fire.adapters, self.behind.digest)
        self.behind = None
        return True
