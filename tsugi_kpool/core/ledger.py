"""Two ledgers: where every token's contribution is, and who trains on which samples.

DESIGN.md rule 2: for every adapter, committed + discarded + buffered weight = weight produced.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from .messages import Lease


@dataclass(frozen=True)
class Shipment:
    """What one replica ships for the selected adapters: weights in supervised tokens, and micro-steps."""

    adapters: tuple[int, ...]
    tokens: tuple[int, ...]
    micro_steps: tuple[int, ...]


class ContributionLedger:
    """Counts one replica's weight for each adapter. Not thread-safe: its owner holds a lock."""

    def __init__(self, n: int) -> None:
        self.produced = [0] * n
        self.committed = [0] * n
        self.discarded = [0] * n
        self.discarded_by: dict[str, int] = {}
        """Reason to discarded tokens, summed over adapters."""
        self.micro_steps = [0] * n

    def collect(self, tokens: int, adapters: Sequence[int] = ()) -> None:
        """A micro-step on `tokens` supervised tokens has changed these adapters; all, when none are named."""
        if adapters:
            for adapter in adapters:
                self.produced[adapter] += tokens
                self.micro_steps[adapter] += 1
            return
        self.produced = [produced + tokens for produced in self.produced]
        self.micro_steps = [steps + 1 for steps in self.micro_steps]

    def buffered(self, adapter: int) -> int:
        """Tokens whose contribution has not been committed yet."""
        return self.produced[adapter] - self.committed[adapter] - self.discarded[adapter]

    def shipment(self, adapters: Sequence[int]) -> Shipment:
        """All that is buffered for these adapters now. Nothing is taken out before `commit`."""
        return Shipment(
            tuple(adapters),
            tuple(self.buffered(a) for a in adapters),
            tuple(self.micro_steps[a] for a in adapters),
        )

    def commit(self, shipment: Shipment) -> None:
        """The round of this shipment has been committed."""
        for adapter, tokens, steps in zip(shipment.adapters, shipment.tokens, shipment.micro_steps, strict=True):
            self.committed[adapter] += tokens
            self.micro_steps[adapter] -= steps

    def discard(self, adapter: int, tokens: int, micro_steps: int, reason: str) -> None:
        """A part of what is buffered for this adapter will never be shipped."""
        self.discarded[adapter] += tokens
        self.discarded_by[reason] = self.discarded_by.get(reason, 0) + tokens
        self.micro_steps[adapter] -= micro_steps


@dataclass
class LeaseBook:
    """Hands out positions [0, total) of the data order, each once, in small ranges.

    A request is known by (replica, ticket); a repeated one gets the same range, so a lost answer loses no data.
    """

    total: int
    size: int
    granularity: int
    """Positions in one micro-batch: a range is a multiple of it, but for the last one."""
    replicas: int
    next: int = 0
    closed: bool = False
    _newest: dict[int, Lease] = field(default_factory=dict)

    def granted(self, replica: int, ticket: int) -> Lease | None:
        """The answer to a request that is repeated, or overtaken by a later one; None when it is a new one."""
        newest = self._newest.get(replica)
        return newest if newest is not None and ticket <= newest.ticket else None

    def newest_ticket(self, replica: int) -> int:
        """Of this replica's newest range; 0 before the first."""
        newest = self._newest.get(replica)
        return newest.ticket if newest is not None else 0

    def offer(self, ticket: int, micro_batch: int = 0, ahead: int = 0) -> Lease:
        """What a new request would get. Ranges shrink towards the end: nobody is left with a long last one.

        Args:
            ticket: The request's.
            micro_batch: Positions in one micro-step of the asker; 0: the usual number.
            ahead: Positions that the asker should hold, where that is more than the usual size; see `leasing`.
        """
        length = self._length(micro_batch or self.granularity, ahead)
        stop = self.next if self.closed else min(self.total, self.next + length)
        return Lease(ticket, self.next, stop, 0 if micro_batch == self.granularity else micro_batch)

    def take(self, replica: int, lease: Lease) -> None:
        """This replica trains on that range."""
        self.next = max(self.next, lease.stop)
        self._newest[replica] = lease

    def grant(self, replica: int, ticket: int) -> Lease:
        """Answer a request: as before, or with a new range."""
        lease = self.granted(replica, ticket)
        if lease is None:
            lease = self.offer(ticket)
            self.take(replica, lease)
        return lease

    @property
    def exhausted(self) -> bool:
        """True when every later request gets an empty range."""
        return self.closed or self.next >= self.total

    def _length(self, micro_batch: int, ahead: int) -> int:
        fair = (self.total - self.next) // (2 * self.replicas) // micro_batch * micro_batch
        usual = min(self.size // self.granularity * micro_batch, fair)
        return max(micro_batch, usual, ahead // micro_batch * micro_batch)
