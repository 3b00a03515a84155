"""The ways in which a round sums its parts, without sockets.

A way is a generator: it yields the collectives that it needs, is sent what has come of each, and returns the round's
result. A group of sockets drives it (`reducing`), and so does a fleet in virtual time.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass

from torch import Tensor

from tsugi_kpool.core.settings import Payload

from .rounds import Contribution, RoundResult, UnusableRound, combine, pack
from .update import UpdateRule


@dataclass(frozen=True)
class ToAll:
    """A collective: everybody gets everybody's bytes, which are equally many."""

    payload: Tensor

    def sizes(self, members: int) -> list[int]:
        """Return the bytes for each member."""
        return [self.payload.numel()] * members

    @property
    def payload_bytes(self) -> int:
        """Bytes of our part."""
        return self.payload.numel()


@dataclass(frozen=True)
class ToEach:
    """A collective: member j gets `parts[j]` of everybody."""

    parts: list[Tensor]
    """For each member, of any size."""
    receives: list[int]
    """Bytes that we get of each member."""

    def sizes(self, members: int) -> list[int]:
        """Return the bytes for each member."""
        del members
        return [part.numel() for part in self.parts]

    @property
    def payload_bytes(self) -> int:
        """Bytes of our part."""
        return sum(part.numel() for part in self.parts)


Outcome = RoundResult | UnusableRound
Way = Generator[ToAll | ToEach, list[Tensor], Outcome]
"""What is sent into it are everybody's bytes for us, in the order of the members."""


@dataclass(frozen=True)
class Place:
    """Where a way stands: what is the same in all of a generation's rounds."""

    rank: int
    members: int
    update: UpdateRule
    payload: Payload
    error_feedback: bool


def exchanged(wanted: Sequence[ToAll | ToEach]) -> list[list[Tensor]]:
    """Return what comes of a collective of members that are all in this process, for each of them."""
    rows = [each.parts if isinstance(each, ToEach) else [each.payload] * len(wanted) for each in wanted]
    return [[row[rank].clone() for row in rows] for rank in range(len(wanted))]


def together(ways: Sequence[Way]) -> list[Outcome]:
    """Run the ways of members that are all in this process to their end."""
    return finished(ways, [next(way) for way in ways])


def finished(ways: Sequence[Way], wanted: Sequence[ToAll | ToEach]) -> list[Outcome]:
    """Go on with the ways of members that are all in this process, from the collectives that they want."""
    while True:
        found: list[Outcome] = []
        answers = exchanged(wanted)
        wanted = list[ToAll | ToEach]()
        for way, answer in zip(ways, answers, strict=True):
            try:
                wanted.append(way.send(answer))
            except StopIteration as end:
                found.append(end.value)
        if found:
            return found


def gathered(place: Place, contribution: Contribution) -> Way:
    """Everybody sends its part to all others, and each sums for itself."""
    parts = yield ToAll(pack(contribution, place.payload))
    return combine(parts, place.rank, contribution, place.update, place.payload, place.error_feedback)
