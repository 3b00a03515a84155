"""The seam between a round and whatever sums it: a contribution goes in, and the round's result comes out.

Three ways fit: all gather everything (`ways.gathered`), owners sum shards (`scattered`), and one that needs no group
between replicas at all.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeVar

from torch import Tensor

from tsugi_kpool.codec.shards import Cut
from tsugi_kpool.core.messages import Fire
from tsugi_kpool.core.rounds.reduction import reduction
from tsugi_kpool.core.settings import KPool, Payload, Reduce

from .collective import CollectiveError, Group
from .local import LocalUpdate
from .rounds import Contribution
from .scatter_check import Checking, Evidence, checking
from .scattered import Sign, scattered, unsigned
from .update import UpdateRule
from .ways import Outcome, Place, ToAll, ToEach, Way, gathered

Result = TypeVar("Result")


@dataclass(frozen=True)
class Traffic:
    """What collectives have taken."""

    payload_bytes: int
    """Of our part, as it was shipped."""
    sent_bytes: int
    received_bytes: int
    transfer_s: float
    """In the collectives alone."""


@dataclass(frozen=True)
class Reduction:
    """A round that has been summed, and what that took. Nothing is applied yet."""

    outcome: Outcome
    traffic: Traffic
    first: bool
    """Whether we tell the hub what all would say alike."""
    void: bool = False
    """Our part came too late, and is not in it."""
    counted: tuple[int, ...] = ()
    """Over an exchange: the replicas whose parts are in it."""
    durables: tuple[int, ...] = ()
    """How many of each one's samples are durable with it."""
    receipt: str = ""
    """Shows the hub that the exchange has said this of the parts."""


class Reducer(Protocol):
    """Sums the rounds of one generation. All methods belong to the aggregator's thread."""

    rank: int
    members: int

    def reduce(self, contribution: Contribution, fire: Fire) -> Reduction:
        """Sum everybody's contributions to the round that this order has begun.

        Raises:
            CollectiveError: a member has gone, or does not answer in time.
        """

    def check(self, owner: int, checkers: tuple[int, ...]) -> tuple[tuple[int, ...], Traffic]:
        """Take part in the check of an owner of the round in flight. All are ranks.

        Returns:
            Who is wrong, as we have found; and what it took.

        Raises:
            CollectiveError: as `reduce`; or there is no such round here.
        """

    def shown(self) -> tuple[bytes, bytes] | None:
        """Return what each member has told us in the round in flight: digests and signatures, in their order (see
        `core.messages.Compared`). None: nobody tells all others anything here."""

    def committed(self, round: int) -> None:
        """The round counts."""


class Ways:
    """The rounds of one generation, as one of its members sums them. Made where nobody steps: residuals are divided.

    Args:
        rank: Our place among the members.
        members: How many.
        update: Our anchors, and what a round does to them.
        settings: The pool's.
    """

    def __init__(self, rank: int, members: int, update: UpdateRule, settings: KPool) -> None:
        payload = Payload.FP32 if members == 1 else settings.payload
        self._place = Place(rank, members, update, payload, settings.error_feedback)
        self.cut: Cut | None = None
        """The shards of a generation with owners."""
        self.kept: list[Evidence] = []
        """What the round in flight leaves for a check of its owners; empty where there are none."""
        self._keeper = update.keeper if isinstance(update, LocalUpdate) else None
        if self._keeper is not None and reduction(settings, members) is Reduce.SCATTER:
            self.cut = Cut(update.pool.size, members, payload)
        if isinstance(update, LocalUpdate):
            update.divide(self.cut, rank)

    def of(self, contribution: Contribution, sign: Sign = unsigned) -> Way:
        """Return the way that a round of ours takes; `sign` signs what we tell the others in it."""
        if self.cut is None or self._keeper is None:
            return gathered(self._place, contribution)
        return scattered(self._place, self._keeper, self.cut, contribution, self.kept, sign)

    def check(self, owner: int, checkers: tuple[int, ...]) -> Checking:
        """Take part in the check of an owner of our last round.

        Raises:
            CollectiveError: there was none.
        """
        if not self.kept:
            raise CollectiveError("a check of a round that has no owners here")
        return checking(self._place, self.kept[0], owner, checkers)


class GroupReducer:
    """Sums over the sockets of a generation's group.

    Args:
        group: The generation's.
        update: Our anchors, and what a round does to them.
        settings: The pool's.
        sign: Signs what we tell the others in a round of a generation, as `Uplink.sign` does; None: nobody does.
    """

    def __init__(
        self,
        group: Group,
        update: UpdateRule,
        settings: KPool,
        sign: Callable[[int, int, bytes], bytes] | None = None,
    ) -> None:
        self._sign = sign
        self._group, self.rank, self.members = group, group.rank, group.world
        self._ways = Ways(group.rank, group.world, update, settings)

    def reduce(self, contribution: Contribution, fire: Fire | None = None) -> Reduction:
        sign = self._sign
        known = unsigned if fire is None or sign is None else partial(sign, fire.generation, fire.round)
        return Reduction(*drive(self._ways.of(contribution, known), self._group), first=self.rank == 0)

    def check(self, owner: int, checkers: tuple[int, ...]) -> tuple[tuple[int, ...], Traffic]:
        return drive(self._ways.check(owner, checkers), self._group)

    def shown(self) -> tuple[bytes, bytes] | None:
        return self._ways.kept[0].shown() if self._ways.kept else None

    def committed(self, round: int) -> None:
        del round


def drive(way: Generator[ToAll | ToEach, list[Tensor], Result], group: Group) -> tuple[Result, Traffic]:
    """Run a way to its end over a group's sockets."""
    sent, received, payload_bytes, transfer_s = 0, 0, 0, 0.0
    try:
        wanted = next(way)
        while True:
            started_s = time.monotonic()
            answer = _run(wanted, group)
            transfer_s += time.monotonic() - started_s
            sizes = wanted.sizes(group.world)
            payload_bytes = payload_bytes or wanted.payload_bytes  # the first collective's is that of our part
            sent += sum(sizes) - sizes[group.rank]
            received += sum(part.numel() for part in answer) - answer[group.rank].numel()
            wanted = way.send(answer)
    except StopIteration as end:
        return end.value, Traffic(payload_bytes, sent, received, transfer_s)


def _run(wanted: ToAll | ToEach, group: Group) -> list[Tensor]:
    if isinstance(wanted, ToAll):
        return group.gather(wanted.payload)
    return group.scatter(wanted.parts, wanted.receives)
