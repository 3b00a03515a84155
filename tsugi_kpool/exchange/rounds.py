"""What the exchange knows of rounds: who has given a part, what the newest result is, and whether it counts. Pure.

The hub never speaks to the exchange. Members repeat to it what the hub has ordered: a part says which round it is of,
and which round its sender knows to be committed. So the exchange learns from the next round's parts whether the one
before counts, as a replica learns it from the next Fire.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import islice

import msgspec

from tsugi_kpool.codec.owner import Mean
from tsugi_kpool.core.rounds.closing import REPORTERS, Awaited, Quorum, closes_s, grace_of, missed

from .books import Kept, Unwritten, without
from .frames import MOST_STATE, Part
from .reduction import Given, Left, Reduced, part_bytes, reduce, rest_of
from .states import STATE_COPIES, STATE_MORE

OVERTAKEN = "the fleet has gone on to another round"
DISAGREE = "the members do not agree on what this round is"
LOST = "the exchange was killed before the result of this round was on its disk"
OTHER_POOL = "the adapters of this round had another size before"
NO_ADAPTER = "the pool has no such adapter"
TWICE = "its sender has given another part of this round"
NO_MEMBER = "its sender is no member of this round"
WRONG_SIZE = "a part of {} bytes, where it has {}"


EVERYBODY = Quorum()
Settled = tuple[Part, bool] | None
"""The round before, and whether it counts."""


class Refusal(Exception):
    """A part that is not taken; the text says why."""


@dataclass
class Collecting:
    """A round whose parts come in."""

    part: Part
    began_s: float
    awaited: Awaited
    parts: dict[int, Given] = field(default_factory=dict)
    enough_s: float | None = None
    """Since when enough parts are here that others need not be waited for."""
    closed: bool = False
    """No further part counts."""

    def reporters_first(self) -> list[int]:
        """Return whose parts are here, in the order in which they came; those who tell the hub of it come first."""
        reporters = set(islice((member for member in self.part.members if member in self.parts), REPORTERS))
        return sorted(self.parts, key=lambda member: member not in reporters)  # stable


class Rounds:
    """The rounds of a run: `take` parts until `closes_s`, then `close`, `settle`, `reduce` and `finish`.

    Args:
        left: Adapter -> what is left of it after its newest committed round.
        newest: The newest round; nobody has said yet whether it counts.
        before: The committed round before it: members may still lack it.
        adapters: Of the pool: no part names another one.
        quorum: Whom a round waits for.
        lost: What the process before has reduced and not written down. Such a round is not reduced again: members may
            have its result, and another one would be other anchors.
    """

    def __init__(
        self,
        left: dict[int, Left],
        newest: Kept | None,
        before: Kept | None,
        adapters: int,
        quorum: Quorum = EVERYBODY,
        lost: Unwritten | None = None,
    ) -> None:
        lost = lost or {}
        self._lost = max(lost.values(), default=(0, 0))
        self._left = {adapter: each for adapter, each in left.items() if adapter not in lost}
        self.newest, self._before = without(newest, lost), before
        self._adapters, self._quorum = adapters, quorum
        self._spoilt: Kept | None = None
        """The newest round that cannot be applied, for those who come late to it."""
        self._misses: dict[int, int] = {}
        """Rounds in a row in which a member's part was not counted."""
        self._periods: tuple[float | None, float | None] = None, None
        """When the two newest rounds have begun."""
        self.collecting: Collecting | None = None
        self._begun = key(newest.part) if newest is not None else (0, 0)
        """The newest round of which anything has come."""

    def result_of(self, part: Part) -> Kept | None:
        """Return the result of one of the two newest rounds, if this part is of it: it comes again, or too late."""
        known = (
            each for each in (self.newest, self._before, self._spoilt) if each is not None and _same(each.part, part)
        )
        return next(known, None)

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
        """Whether a round is closed and has no result yet."""
        return self.collecting is not None and self.collecting.closed

    def closed(self, part: Part) -> bool:
        """Whether the round of this part takes no more parts, and its result is on its way."""
        return self.collecting is not None and self.collecting.closed and key(self.collecting.part) == key(part)

    def check(self, replica: int, part: Part, body_bytes: int) -> None:
        """Check a part before its raw bytes are read.

        Raises:
            BadFrame: no round has such a part.
            Refusal: it is no part of a round that can still be.
        """
        wanted, over = part_bytes(part), self.result_of(part) is not None
        fetches = not body_bytes and (over or self.closed(part))  # it wants the result alone
        if body_bytes != wanted and not fetches:
            raise Refusal(WRONG_SIZE.format(body_bytes, wanted))
        if max(part.adapters) >= self._adapters:
            raise Refusal(NO_ADAPTER)
        if replica not in part.members:
            raise Refusal(NO_MEMBER)
        if over:
            return
        if key(part) <= self._lost:
            raise Refusal(LOST)
        if key(part) < self._begun:
            raise Refusal(OVERTAKEN)
        known = self.collecting.part if self.collecting is not None else self.newest.part if self.newest else None
        if known is not None and key(known) == key(part) and not _same(known, part):
            raise Refusal(DISAGREE)
        given = self.collecting.parts.get(replica) if self.collecting is not None else None
        if given is not None and key(given.part) == key(part) and _sender(given.part) != _sender(part):
            raise Refusal(TWICE)
        # All adapters of a pool have one size, so that what a part can have is bounded from the first commit on.
        if any(left.size != part.size for left in self._left.values()):
            raise Refusal(OTHER_POOL)

    def take(self, replica: int, part: Part, body: bytes | bytearray, now_s: float) -> bool:
        """Take in a part that `check` has let through; returns whether it is news to a round that is open."""
        if self.result_of(part) is not None:
            return False
        if self.collecting is None or key(self.collecting.part) != key(part):
            self.collecting = Collecting(part, now_s, Awaited(part.members, self._misses))
            self._begun, self._periods = key(part), (self._periods[1], now_s)
        collecting = self.collecting
        if collecting.closed or replica in collecting.parts:
            return False  # too late, or it comes again
        collecting.parts[replica] = Given(part, body)
        collecting.awaited.came(replica)
        if collecting.enough_s is None and len(collecting.parts) >= self._quorum.needed(len(part.members)):
            collecting.enough_s = now_s
        return True

    def closes_s(self, gone_s: Mapping[int, float]) -> float:
        """Return when the round that comes in closes, if nothing else comes; inf when there is none.

        Args:
            gone_s: Of members whose connections have broken, since when.
        """
        collecting = self.collecting
        if collecting is None or collecting.closed:
            return math.inf
        took_s = (collecting.enough_s or 0.0) - collecting.began_s
        before_s, began_s = self._periods
        period_s = None if before_s is None or began_s is None else began_s - before_s
        missing = collecting.awaited.kinds(gone_s, collecting.began_s)
        return closes_s(self._quorum, grace_of(self._quorum, period_s, took_s), collecting.enough_s, missing)

    def close(self) -> Collecting:
        """Close the round that comes in: from now on no part of it counts.

        Raises:
            RuntimeError: there is none.
        """
        collecting = self.collecting
        if collecting is None:
            raise RuntimeError("no round to close")
        collecting.closed = True
        self._misses = missed(self._misses, collecting.part.members, collecting.parts)
        return collecting

    def settle(self, collected: Collecting) -> Settled:
        """Decide, from a closed round, whether the one before counts; returns which one, and whether it does."""
        newest, self.newest = self.newest, None
        if newest is None:
            return None
        counts = _counts(newest.part, collected)
        self._before = newest if counts else None  # who fires in spite of one that does not count lacks nothing
        if counts:
            for row, adapter in enumerate(newest.part.adapters):
                self._left[adapter] = newest.left[row]
        return newest.part, counts

    def reduce(self, collected: Collecting) -> tuple[Reduced, Mean | None]:
        """Return what a closed round amounts to, once the one before is settled, as `reduction.reduce` does."""
        part = collected.part
        # A round whose members had agreed on another size may have been settled since the parts were checked: then
        # what it leaves over is nobody's.
        rest = rest_of([self._left.get(each) for each in part.adapters], part.size)
        return reduce(part, collected.parts, rest)

    def finish(self, collected: Collecting, kept: Kept) -> None:
        """A round has been reduced: its parts are not needed any more.

        Args:
            collected: The round.
            kept: What it amounts to.
        """
        if kept.reduced.result.unusable:  # such a round is never applied, whatever becomes of it
            self._spoilt = kept
        else:
            self.newest = kept
        if self.collecting is collected:
            self.collecting = None


def key(part: Part) -> tuple[int, int]:
    """Return what rounds are ordered by."""
    return part.generation, part.round


def _same(one: Part, other: Part) -> bool:
    return _common(one) == _common(other)


def _common(part: Part) -> Part:
    """Return the part as all members say it."""
    return msgspec.structs.replace(part, settled=None, incarnation="", sequence=0, durable=0)


def _sender(part: Part) -> tuple[str, int]:
    """Return what tells the parts of a member apart."""
    return part.incarnation, part.sequence


def _counts(before: Part, collected: Collecting) -> bool:
    """Whether the round before has been committed.

    The hub's order says so, and its members repeat it. Where nobody knows, the versions tell: a round that was
    dropped leaves the version as it was.
    """
    known = [each.part.settled for each in collected.parts.values() if each.part.settled is not None]
    return max(known) >= before.round if known else collected.part.version > before.version
