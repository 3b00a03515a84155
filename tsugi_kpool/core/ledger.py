"""One replica's books: where every token's contribution is, and which of its samples are durable.

DESIGN.md rule 2: for every adapter, committed + discarded + buffered weight = weight produced. A sample is durable
when nothing of it is buffered any more for any adapter. Who trains on which samples stands in `lease_book`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Shipment:
    """What one replica ships for the selected adapters: weights in supervised tokens, and micro-steps."""

    adapters: tuple[int, ...]
    tokens: tuple[int, ...]
    micro_steps: tuple[int, ...]
    samples: int = 0
    """That had been trained on when this was taken."""
    durable: int = 0
    """Of them, from the first one on, those that are durable once this has been committed."""


class ContributionLedger:
    """Counts one replica's weight for each adapter. Not thread-safe: its owner holds a lock."""

    def __init__(self, n: int) -> None:
        self._produced, self._micro_steps = [0] * n, [0] * n
        self._all_tokens = self._all_micro_steps = 0
        """Of micro-steps of all adapters, which are not in the two lists yet: there are many between two readings."""
        self.committed = [0] * n
        self.discarded = [0] * n
        self.discarded_by: dict[str, int] = {}
        """Reason to discarded tokens, summed over adapters."""
        self.samples = 0
        """Trained on so far."""
        self._settled = [0] * n
        """For each adapter with anything buffered: the samples before the first one that is buffered."""

    @property
    def produced(self) -> list[int]:
        """For each adapter, supervised tokens."""
        self._spread()
        return self._produced

    @property
    def micro_steps(self) -> list[int]:
        """For each adapter, those whose contribution is buffered."""
        self._spread()
        return self._micro_steps

    def waiting(self) -> tuple[int, ...]:
        """As `micro_steps`, for a beat."""
        return tuple([steps + self._all_micro_steps for steps in self._micro_steps])

    def collect(self, tokens: int, adapters: Sequence[int] = (), samples: int = 0) -> None:
        """A micro-step on `tokens` supervised tokens of so many samples has changed these adapters; empty: all."""
        if not self._all_micro_steps:  # else something is buffered for all of them
            for adapter in adapters or range(len(self._produced)):
                if not self._micro_steps[adapter]:
                    self._settled[adapter] = self.samples
        for adapter in adapters:
            self._produced[adapter] += tokens
            self._micro_steps[adapter] += 1
        if not adapters:
            self._all_tokens += tokens
            self._all_micro_steps += 1
        self.samples += samples

    def _spread(self) -> None:
        if self._all_micro_steps:
            tokens, steps = self._all_tokens, self._all_micro_steps
            self._produced = [each + tokens for each in self._produced]
            self._micro_steps = [each + steps for each in self._micro_steps]
            self._all_tokens = self._all_micro_steps = 0

    def buffered(self, adapter: int) -> int:
        """Tokens whose contribution has not been committed yet."""
        return self.produced[adapter] - self.committed[adapter] - self.discarded[adapter]

    def shipment(self, adapters: Sequence[int]) -> Shipment:
        """All that is buffered for these adapters now. Nothing is taken out before `commit`."""
        return Shipment(
            tuple(adapters),
            tuple(self.buffered(a) for a in adapters),
            tuple(self.micro_steps[a] for a in adapters),
            self.samples,
            self._durable_after(adapters),
        )

    @property
    def durable(self) -> int:
        """Samples, from the first one on, of which nothing is buffered any more."""
        return self._durable_after(())

    def _durable_after(self, shipped: Sequence[int]) -> int:
        pairs = enumerate(zip(self._settled, self.micro_steps, strict=True))
        waiting = [settled for adapter, (settled, steps) in pairs if steps and adapter not in shipped]
        return min(waiting, default=self.samples)

    def commit(self, shipment: Shipment) -> None:
        """The round of this shipment has been committed."""
        for adapter, tokens, steps in zip(shipment.adapters, shipment.tokens, shipment.micro_steps, strict=True):
            self.committed[adapter] += tokens
            self.micro_steps[adapter] -= steps
            self._settled[adapter] = shipment.samples

    def discard(self, adapter: int, tokens: int, micro_steps: int, reason: str) -> None:
        """A part of what is buffered for this adapter will never be shipped."""
        self.discarded[adapter] += tokens
        self.discarded_by[reason] = self.discarded_by.get(reason, 0) + tokens
        self.micro_steps[adapter] -= micro_steps
