"""What the exchange knows of rounds: who has given a part, what the newest result is, and whether it counts. Pure.

The hub never speaks to the exchange. Members repeat to it what the hub has ordered: a part says which round it is of,
and which round its sender knows to be committed. So the exchange learns from the next round's parts whether the one
before counts, as a replica learns it from the next Fire.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec

from tsugi_kpool.codec.owner import Mean

from .books import Kept
from .frames import MOST_STATE, Part
from .reduction import Left, Reduced, part_bytes, reduce, rest_of
from .states import STATE_COPIES, STATE_MORE

OVERTAKEN = "the fleet has gone on to another round"
DISAGREE = "the members do not agree on what this round is"
OTHER_POOL = "the adapters of this round had another size before"
NO_ADAPTER = "the pool has no such adapter"
NO_MEMBER = "its sender is no member of this round"
WRONG_SIZE = "a part of {} bytes, where it has {}"


Settled = tuple[Part, bool] | None
"""The round before, and whether it counts."""


class Refusal(Exception):
    """A part that is not taken; the text says why."""


@dataclass
class Collecting:
    """A round whose parts come in."""

    part: Part
    bodies: dict[int, bytes | bytearray] = field(default_factory=dict)
    settled: dict[int, int | None] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        return len(self.bodies) == len(self.part.members)

    @property
    def ordered(self) -> list[bytes | bytearray]:
        """Everybody's raw bytes, in the order of the members."""
        return [self.bodies[member] for member in self.part.members]


class Rounds:
    """The rounds of a run. `take` and `finish` are told what has come, and `reduce` does the arithmetic.

    Args:
        left: Adapter -> what is left of it after its newest committed round.
        newest: The newest round; nobody has said yet whether it counts.
        adapters: Of the pool: no part names another one.
    """

    def __init__(self, left: dict[int, Left], newest: Kept | None, adapters: int) -> None:
        self._left, self.newest, self._adapters = left, newest, adapters
        self.collecting: Collecting | None = None
        self._begun = key(newest.part) if newest is not None else (0, 0)
        """The newest round of which anything has come."""

    def result_of(self, part: Part) -> Kept | None:
        """Return the newest round's result, if this is a part of it that comes again."""
        newest = self.newest
        return newest if newest is not None and _same(newest.part, part) else None

    def left_after(self, round: int) -> dict[int, Left] | None:
        """Return what is left over of each adapter once this round is committed; None when that is not known any
        more, because a later one has come."""
        newest = self.newest
        if self.reducing or (newest is not None and newest.part.round > round):
            return None
        ours = {} if newest is None else dict(zip(newest.part.adapters, newest.left, strict=True))
        return self._left | ours

    @property
    def most_state(self) -> int:
        """Bytes that the fleet's state can have: anchors, moments and more. Known from the first commit on."""
        sizes = [4 * left.size for left in self._left.values()]
        return STATE_COPIES * self._adapters * sizes[0] + STATE_MORE if sizes else MOST_STATE

    @property
    def reducing(self) -> bool:
        """Whether a complete round has no result yet."""
        return self.collecting is not None and self.collecting.complete

    def check(self, replica: int, part: Part, body_bytes: int) -> None:
        """Check a part before its raw bytes are read.

        Raises:
            BadFrame: no round has such a part.
            Refusal: it is no part of a round that can still be.
        """
        if body_bytes != (wanted := part_bytes(part)):
            raise Refusal(WRONG_SIZE.format(body_bytes, wanted))
        if max(part.adapters) >= self._adapters:
            raise Refusal(NO_ADAPTER)
        if replica not in part.members:
            raise Refusal(NO_MEMBER)
        if key(part) < self._begun:
            raise Refusal(OVERTAKEN)
        known = self.collecting.part if self.collecting is not None else self.newest.part if self.newest else None
        if known is not None and key(known) == key(part) and not _same(known, part):
            raise Refusal(DISAGREE)
        # All adapters of a pool have one size, so that what a part can have is bounded from the first commit on.
        if any(left.size != part.size for left in self._left.values()):
            raise Refusal(OTHER_POOL)

    def take(self, replica: int, part: Part, body: bytes | bytearray) -> Collecting | None:
        """Take in a part that `check` has let through; returns its round if that is complete now."""
        if self.collecting is None or key(self.collecting.part) != key(part):
            self.collecting = Collecting(part)
            self._begun = key(part)
        collecting = self.collecting
        if collecting.complete:
            return None  # it comes again while the round is being reduced
        collecting.bodies[replica], collecting.settled[replica] = body, part.settled
        return collecting if collecting.complete else None

    def settle(self, collected: Collecting) -> Settled:
        """Decide, from a complete round, whether the one before counts; returns which one, and whether it does."""
        newest, self.newest = self.newest, None
        if newest is None:
            return None
        counts = _counts(newest.part, collected)
        if counts:
            for row, adapter in enumerate(newest.part.adapters):
                self._left[adapter] = newest.left[row]
        return newest.part, counts

    def reduce(self, collected: Collecting) -> tuple[Reduced, Mean | None]:
        """Return what a complete round amounts to, once the one before is settled, as `reduction.reduce` does."""
        part = collected.part
        # A round whose members had agreed on another size may have been settled since the parts were checked: then
        # what it leaves over is nobody's.
        rest = rest_of([self._left.get(each) for each in part.adapters], part.size)
        return reduce(part, collected.ordered, rest)

    def finish(self, collected: Collecting, kept: Kept | None) -> None:
        """A round has been reduced: its parts are not needed any more.

        Args:
            collected: The round.
            kept: What it amounts to; None: it is never applied, whatever becomes of it.
        """
        if kept is not None:
            self.newest = kept
        if self.collecting is collected:
            self.collecting = None


def key(part: Part) -> tuple[int, int]:
    """Return what rounds are ordered by."""
    return part.generation, part.round


def _same(one: Part, other: Part) -> bool:
    return _without_settled(one) == _without_settled(other)


def _without_settled(part: Part) -> Part:
    """Return the part as all members say it."""
    return msgspec.structs.replace(part, settled=None)


def _counts(before: Part, collected: Collecting) -> bool:
    """Whether the round before has been committed.

    Who took part in it knows. Where nobody is left who did, the versions tell: a round that was dropped leaves the
    version as it was.
    """
    known = [each for each in collected.settled.values() if each is not None]
    return max(known) >= before.round if known else collected.part.version > before.version
