"""The data ledger: which positions of the data order are free, held by whom, and durable.

A position is free, held by one replica, or durable: its work has been committed for every adapter. A replica trains
on its ranges in the order in which they were granted, so that one number, how many of its samples are durable, says
which positions are; from that number on, what it held is free again when it has gone.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from tsugi_kpool.core.messages import Lease

from . import ranges
from .ranges import Range


@dataclass
class _Held:
    """What one incarnation of a replica has been handed."""

    ranges: deque[Range] = field(default_factory=deque)
    """What is not durable yet, in the order in which it trains on them."""
    samples: int = 0
    """Handed to it in all."""
    durable: int = 0
    newest: Lease | None = None


def _again(held: _Held, trained: int) -> int:
    """Samples that were trained on and are not durable."""
    return max(0, min(trained, held.samples) - held.durable)


@dataclass
class LeaseBook:
    """Hands out the positions [0, total) of the data order in small ranges.

    Every position is handed out once, and again only if its holder left before it was durable. A request is known by
    (replica, ticket); a repeated one gets the same range, so a lost answer loses no data.

    Args:
        total: Positions in the whole run.
        size: Positions in a usual range.
        granularity: Positions in one step: a range is a multiple of it, but for the last one.
        replicas: Among how many the rest is shared out towards the end.
        done: Ranges [start, stop) that are durable from the start, as `durable` gave them when a checkpoint was
            written: a resumed run does not hand them out. In any order; they may touch and overlap.
    """

    total: int
    size: int
    granularity: int
    replicas: int
    done: tuple[Range, ...] = ()
    closed: bool = False
    issued: int = 0
    """Positions handed out so far; those handed out again count again."""
    replayed: int = 0
    """Samples that a replica had trained on when it left, and that another one trains on again."""
    _free: list[Range] = field(default_factory=list)
    _durable: list[Range] = field(default_factory=list)
    _held: dict[int, _Held] = field(default_factory=dict)
    _departed: dict[int, tuple[_Held, int]] = field(default_factory=dict)
    """What those hold who have left in a round that goes on, and how many samples they had trained on."""

    def __post_init__(self) -> None:
        ranges.add(self._free, 0, self.total)
        for start, stop in self.done:
            ranges.remove(self._free, start, stop)
            ranges.add(self._durable, max(0, start), min(stop, self.total))

    def granted(self, replica: int, ticket: int) -> Lease | None:
        """The answer to a request that is repeated, or overtaken by a later one; None when it is a new one."""
        newest = self._of(replica).newest
        return newest if newest is not None and ticket <= newest.ticket else None

    def newest_ticket(self, replica: int) -> int:
        """Of this replica's newest range; 0 before the first."""
        newest = self._of(replica).newest
        return newest.ticket if newest is not None else 0

    def offer(self, ticket: int, micro_batch: int = 0, ahead: int = 0) -> Lease:
        """What a new request would get: what is free at the lowest position.

        Ranges shrink towards the end: nobody is left with a long last one.

        Args:
            ticket: The request's.
            micro_batch: Positions in one step of the asker; 0: the usual number.
            ahead: Positions that the asker should hold, where that is more than the usual size; see `leasing`.
        """
        size = 0 if micro_batch == self.granularity else micro_batch
        if self.exhausted:
            return Lease(ticket, self.total, self.total, size)
        start, end = self._free[0]
        length = self._length(micro_batch or self.granularity, ahead)
        return Lease(ticket, start, min(end, start + length), size)

    def take(self, replica: int, lease: Lease) -> None:
        """This replica trains on that range."""
        held = self._held.setdefault(replica, _Held())
        held.newest = lease
        if lease.start < lease.stop:
            ranges.remove(self._free, lease.start, lease.stop)
            held.ranges.append((lease.start, lease.stop))
            held.samples += lease.stop - lease.start
            self.issued += lease.stop - lease.start

    def grant(self, replica: int, ticket: int) -> Lease:
        """Answer a request: as before, or with a new range."""
        lease = self.granted(replica, ticket)
        if lease is None:
            lease = self.offer(ticket)
            self.take(replica, lease)
        return lease

    def settle(self, replica: int, durable: int) -> None:
        """So many of the samples that this replica was handed are durable now, the first ones."""
        self._settle(self._of(replica), durable)

    def settle_departed(self, replica: int, durable: int) -> None:
        """The same of one that has left in this round."""
        self._settle(self._departed[replica][0], durable)

    def _settle(self, held: _Held, durable: int) -> None:
        # Reports are totals, so a repeated or late one settles nothing twice.
        fresh = min(durable, held.samples) - held.durable
        while fresh > 0:
            start, stop = held.ranges.popleft()
            until = min(stop, start + fresh)
            ranges.add(self._durable, start, until)
            held.durable += until - start
            fresh -= until - start
            if until < stop:
                held.ranges.appendleft((until, stop))

    def release(self, replica: int, trained: int) -> int:
        """This replica has gone: what it held and is not durable is free again; its tickets begin anew.

        Args:
            replica: Who.
            trained: Samples that it had trained on, as far as is known.

        Returns:
            How many of those will be trained on again.
        """
        # The whole record goes: the next incarnation counts its samples and tickets from zero.
        return self._free_again(self._held.pop(replica, _Held()), trained)

    def depart(self, replica: int, trained: int) -> None:
        """As `release`, but what it held is not free before `release_departed`: its part of the round may count."""
        self._departed[replica] = (self._held.pop(replica, _Held()), trained)

    def release_departed(self) -> None:
        """The round in which they left is decided: what they held and is not durable is free again."""
        for held, trained in self._departed.values():
            self._free_again(held, trained)
        self._departed.clear()

    def at_stake(self, replica: int) -> int:
        """Samples of one that has left in this round that will be trained on again, if its part does not count."""
        return _again(*self._departed[replica])

    def _free_again(self, held: _Held, trained: int) -> int:
        for start, stop in held.ranges:
            ranges.add(self._free, start, stop)
        again = _again(held, trained)
        self.replayed += again
        return again

    def held(self, replica: int) -> int:
        """Samples that this incarnation has been handed."""
        return self._of(replica).samples

    def handed(self, replica: int) -> int:
        """The same of the member of the round in flight, which may have left since it fired."""
        return self._departed[replica][0].samples if replica in self._departed else self.held(replica)

    def settled(self, replica: int) -> int:
        """How many of them are durable."""
        return self._of(replica).durable

    def durable(self) -> tuple[Range, ...]:
        """The durable positions as sorted ranges: what a checkpoint of the present version has learnt from."""
        return tuple(self._durable)

    @property
    def left(self) -> int:
        """Free positions."""
        return ranges.count(self._free)

    @property
    def exhausted(self) -> bool:
        """True when every later request gets an empty range, unless a replica leaves."""
        return self.closed or not self._free

    def _of(self, replica: int) -> _Held:
        return self._held.get(replica) or _Held()

    def _length(self, micro_batch: int, ahead: int) -> int:
        fair = self.left // (2 * self.replicas) // micro_batch * micro_batch
        usual = min(self.size // self.granularity * micro_batch, fair)
        return max(micro_batch, usual, ahead // micro_batch * micro_batch)
