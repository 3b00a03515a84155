"""One replica's books: where every token's contribution is, and which of its samples are durable.

docs/design.md rule 2: for every adapter, committed + discarded + buffered weight = weight produced. A sample is
durable when nothing of it is buffered any more for any adapter. Who trains on which samples stands in `lease_book`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Shipment:
    """What one replica ships for the selected adapters: weights in supervised tokens, and steps."""

    adapters: tuple[int, ...]
    tokens: tuple[int, ...]
    steps: tuple[int, ...]
    samples: int = 0
    """That had been trained on when this was taken."""
    durable: int = 0
    """Of them, from the first one on, those that are durable once this has been committed."""


class ContributionLedger:
    """Counts one replica's weight for each adapter. To change it takes its owner's lock, to read it none."""

    def __init__(self, n: int) -> None:
        self._tokens, self._steps = [0] * n, [0] * n
        """For each adapter, what differs from the two numbers for all: of steps that only some adapters train,
        and, as negative counts, the steps that have left the buffer."""
        self._all_tokens = self._all_steps = 0
        """Of steps of all adapters."""
        self.committed = [0] * n
        self.discarded = [0] * n
        self.discarded_by: dict[str, int] = {}
        """Reason to discarded tokens, summed over adapters."""
        self.samples = 0
        """Trained on so far."""
        self._settled = [0] * n
        """For each adapter with anything buffered: the samples before the first one that is buffered."""
        self._after = [0] * n
        """The same for what has come after the newest shipment, for adapters that are not in the next set."""
        self._shipped: set[int] = set()
        """Adapters of the newest shipment that have not trained since."""

    @property
    def produced(self) -> list[int]:
        """For each adapter, supervised tokens."""
        return [tokens + self._all_tokens for tokens in self._tokens]

    @property
    def steps(self) -> list[int]:
        """For each adapter, those whose contribution is buffered."""
        return [steps + self._all_steps for steps in self._steps]

    def collect(self, tokens: int, adapters: Sequence[int] = (), samples: int = 0) -> None:
        """A step on `tokens` supervised tokens of so many samples has changed these adapters; empty: all."""
        empty = -self._all_steps
        for adapter in adapters or range(len(self._settled)) if empty in self._steps else ():
            if self._steps[adapter] == empty:
                self._settled[adapter] = self.samples
        if self._shipped:
            for adapter in self._shipped.intersection(adapters or self._shipped):
                self._after[adapter] = self.samples
                self._shipped.remove(adapter)
        for adapter in adapters:
            self._tokens[adapter] += tokens
            self._steps[adapter] += 1
        if not adapters:
            self._all_tokens += tokens
            self._all_steps += 1
        self.samples += samples

    def buffered(self, adapter: int) -> int:
        """Tokens whose contribution has not been committed yet."""
        return self._tokens[adapter] + self._all_tokens - self.committed[adapter] - self.discarded[adapter]

    def shipment(self, adapters: Sequence[int]) -> Shipment:
        """All that is buffered for these adapters now. Nothing is taken out before `commit`, of which only the newest
        shipment's may follow."""
        self._shipped = set(adapters)
        return Shipment(
            tuple(adapters),
            tuple(self.buffered(a) for a in adapters),
            tuple(self._steps[a] + self._all_steps for a in adapters),
            self.samples,
            self._durable_after(adapters),
        )

    @property
    def durable(self) -> int:
        """Samples, from the first one on, of which nothing is buffered any more."""
        return self._durable_after(())

    def _durable_after(self, shipped: Sequence[int]) -> int:
        pairs = enumerate(zip(self._settled, self.steps, strict=True))
        waiting = [settled for adapter, (settled, steps) in pairs if steps and adapter not in shipped]
        return min(waiting, default=self.samples)

    def commit(self, shipment: Shipment) -> None:
        """The round of this shipment has been committed."""
        for adapter, tokens, steps in zip(shipment.adapters, shipment.tokens, shipment.steps, strict=True):
            self.committed[adapter] += tokens
            self._steps[adapter] -= steps
            if steps and adapter not in self._shipped:
                self._settled[adapter] = self._after[adapter]

    def discard(self, adapter: int, tokens: int, steps: int, reason: str) -> None:
        """A part of what is buffered for this adapter will never be shipped."""
        self.discarded[adapter] += tokens
        self.discarded_by[reason] = self.discarded_by.get(reason, 0) + tokens
        self._steps[adapter] -= steps
