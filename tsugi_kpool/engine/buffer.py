"""The elastic buffer of one replica: its changes since the anchors, with their weights, under one lock."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from tsugi_kpool.core.ledger import ContributionLedger

from .pool import AdapterPool
from .rounds import Contribution, Outcome
from .update import LocalUpdate


class ElasticBuffer:
    """What the training thread fills and the aggregator ships.

    The training thread holds the lock while the optimizer steps, the aggregator while it copies: neither ever
    waits for the network in it.

    Args:
        pool: The live adapters.
        measure_noise: Keep Q (the sum of squared norms of single changes), which costs a copy of the pool a step.
    """

    def __init__(self, pool: AdapterPool, measure_noise: bool) -> None:
        self.update = LocalUpdate(pool)
        self.ledger = ContributionLedger(pool.n)
        self._lock = threading.Lock()
        self._norm2_sum = torch.zeros(pool.n, dtype=torch.float64)
        self._previous: Tensor | None = self.update.anchor.clone() if measure_noise else None
        self._shipped_norm2: Tensor = self._norm2_sum[:0]

    def adopt(self, anchor: Tensor) -> None:
        """Begin from the fleet's anchors."""
        with self._lock:
            self.update.adopt(anchor)
            self._remember()

    def land(self) -> None:
        """Give the live parameters the committed rounds. Training thread, between two micro-steps."""
        with self._lock:
            self.update.land()
            self._remember()

    @contextmanager
    def collecting(self, tokens: int) -> Iterator[None]:
        """Wraps optimizer.step(): the change and its weight enter the buffer together."""
        self.open_step()
        try:
            yield
        except BaseException:
            self.drop_step()
            raise
        self.close_step(tokens)

    def open_step(self) -> None:
        """The first half of `collecting`, for who is called before and after a step but cannot wrap it."""
        self._lock.acquire()

    def close_step(self, tokens: int) -> None:
        """The second half: the step has ended well."""
        try:
            self.ledger.collect(tokens)
            self._measure()
        finally:
            self._lock.release()

    def drop_step(self) -> None:
        """The second half when the step has failed: whatever it changed stays buffered without a weight."""
        self._lock.release()

    def contribution(self, adapters: Sequence[int]) -> Contribution:
        """A copy of all that is buffered for these adapters at this moment."""
        with self._lock:
            shipment = self.ledger.shipment(adapters)
            self._shipped_norm2 = self._norm2_sum[list(adapters)].clone()
            delta = self.update.delta(adapters)
            for row, tokens in zip(delta, shipment.tokens, strict=True):
                if not tokens:
                    row.zero_()  # rounding residue without weight is nobody's contribution
            return Contribution(shipment, delta, self._shipped_norm2)

    def commit(self, contribution: Contribution, outcome: Outcome) -> None:
        """The round is committed: anchors move, what was shipped leaves the buffer."""
        with self._lock:
            self.ledger.commit(contribution.shipment)
            self.update.commit(outcome.landing)
            self._norm2_sum[list(contribution.shipment.adapters)] -= self._shipped_norm2

    def settle(self) -> None:
        """After the last round: the live parameters become the anchors, exactly."""
        with self._lock:
            self.update.adopt(self.update.anchor.clone())

    def pooled(self) -> tuple[int, ...]:
        """Micro-steps buffered for each adapter."""
        return tuple(self.ledger.micro_steps)

    def _measure(self) -> None:
        if self._previous is None:
            return
        live = self.update.pool.read(range(self.update.pool.n))
        self._norm2_sum += (live - self._previous).double().square().sum(dim=1)
        self._previous = live

    def _remember(self) -> None:
        if self._previous is not None:
            self._previous = self.update.pool.read(range(self.update.pool.n))
