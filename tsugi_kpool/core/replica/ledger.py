"""A replica's ledger: for each adapter the tokens buffered, committed and discarded, and which samples are durable.

docs/design.md rule 2: for every adapter, committed + discarded + buffered weight = weight produced. A sample is
durable when nothing of it is buffered any more for any adapter. Who trains on which samples stands in `lease_book`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Shipment:
    """What one replica ships for the selected adapters: weights in supervised tokens, and step counts."""

    adapters: tuple[int, ...]
    tokens: tuple[int, ...]
    steps: tuple[int, ...]
    samples: int = 0
    """Samples trained on when this was taken."""
    durable: int = 0
    """How many of them, counted from the first, will be durable once this has been committed."""


class ContributionLedger:
    """Counts one replica's weight for each adapter. Writers hold the owner's lock; readers need none."""

    def __init__(self, n: int) -> None:
        self._tokens, self._steps = [0] * n, [0] * n
        """For each adapter, the difference to the two totals below: plus the steps that only some adapters trained,
        minus the steps that have left the buffer."""
        self._all_tokens = self._all_steps = 0
        """Totals of the steps that trained all adapters."""
        self.committed = [0] * n
        self.discarded = [0] * n
        self.discarded_by: dict[str, int] = {}
        """Discarded tokens by reason, summed over adapters."""
        self.samples = 0
        """Samples trained on so far."""
        self._settled = [0] * n
        """For each adapter that has something buffered: the number of samples before the first buffered one."""
        self._after = [0] * n
        """The same, counting only what was buffered after the newest shipment; valid for adapters that are not in
        `_shipped`."""
        self._shipped: set[int] = set()
        """Adapters of the newest shipment that have not trained since."""

    @property
    def produced(self) -> list[int]:
        """Supervised tokens trained on, for each adapter."""
        return [tokens + self._all_tokens for tokens in self._tokens]

    @property
    def steps(self) -> list[int]:
        """Buffered steps, for each adapter."""
        return [steps + self._all_steps for steps in self._steps]

    def collect(self, tokens: int, adapters: Sequence[int] = (), samples: int = 0) -> None:
        """Count a step on `tokens` supervised tokens of `samples` samples that changed these adapters (empty:
        all)."""
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
        """Return the tokens that this adapter has buffered: neither committed nor discarded."""
        return self._tokens[adapter] + self._all_tokens - self.committed[adapter] - self.discarded[adapter]

    def shipment(self, adapters: Sequence[int]) -> Shipment:
        """Return all that is buffered for these adapters. It stays in the books until `commit`, which may only follow
        for the newest shipment."""
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
        """Durable samples: counted from the first, those of which nothing is buffered any more."""
        return self._durable_after(())

    def _durable_after(self, shipped: Sequence[int]) -> int:
        pairs = enumerate(zip(self._settled, self.steps, strict=True))
        waiting = [settled for adapter, (settled, steps) in pairs if steps and adapter not in shipped]
        return min(waiting, default=self.samples)

    def commit(self, shipment: Shipment) -> None:
        """Take a committed shipment out of the buffer's counts."""
        for adapter, tokens, steps in zip(shipment.adapters, shipment.tokens, shipment.steps, strict=True):
            self.committed[adapter] += tokens
            self._steps[adapter] -= steps
            # Steps came after the shipment: what is still buffered begins with them.
            if steps and adapter not in self._shipped:
                self._settled[adapter] = self._after[adapter]

    def discard(self, adapter: int, tokens: int, steps: int, reason: str) -> None:
        """Count a part of what this adapter has buffered as discarded: it will never be shipped."""
        self.discarded[adapter] += tokens
        self.discarded_by[reason] = self.discarded_by.get(reason, 0) + tokens
        self._steps[adapter] -= steps
