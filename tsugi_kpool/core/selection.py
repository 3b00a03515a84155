"""What the hub keeps of every adapter, and which of them the next round ships.

A round's adapters are chosen once, when the round before it has been committed.
"""

from __future__ import annotations

from collections.abc import Sequence

from .link_cost import AutoK
from .messages import AdapterFacts, Fire
from .noise import SMOOTHING, Noise
from .routing import buffered_change, clearness, select_adapters
from .settings import KPool, Routing


class Selection:
    """Facts of rounds in, the next round's adapters out; no clock, nothing random but the seed's draws."""

    def __init__(self, kpool: KPool, seed: int) -> None:
        self._kpool, self._seed = kpool, seed
        self.shipped_in = [0] * kpool.n
        """The round that shipped each adapter last."""
        self.rates: list[float | None] = [None] * kpool.n
        """Norm of the mean change per pooled micro-step, averaged over rounds; None before the first."""
        self.noise = [Noise() for _ in range(kpool.n)]
        """Each adapter's own, from the differences between members."""
        self.auto = AutoK(kpool.n, kpool.round_timeout_s) if isinstance(kpool.k, str) else None
        """Chooses K, unless the user has."""
        self.due = self._choose(1, [0] * kpool.n)
        """The adapters of the next round."""

    def committed(self, fire: Fire, facts: Sequence[AdapterFacts], pooled: Sequence[int]) -> None:
        """Take in a round, and choose the adapters of the next one.

        Args:
            fire: The round.
            facts: What its first member's Landed says of its adapters; may be empty.
            pooled: Micro-steps that all members have buffered for each adapter; what this round shipped may be in it.
        """
        left = list(pooled)
        for adapter in fire.adapters:
            self.shipped_in[adapter] = fire.round
        for adapter, fact in zip(fire.adapters, facts, strict=False):
            left[adapter] = max(0, left[adapter] - fact.micro_steps)
            self._learn(adapter, fact)
        self.due = self._choose(fire.round + 1, left)

    def timed(self, shipped: int, payload_bytes: int, seconds: float, micro_step_s: float) -> None:
        """What the round cost, before `committed` says what it carried."""
        if self.auto is not None:
            self.auto.committed(shipped, payload_bytes, seconds, micro_step_s)

    def _learn(self, adapter: int, fact: AdapterFacts) -> None:
        if fact.micro_steps:
            rate, before = fact.change_norm / fact.micro_steps, self.rates[adapter]
            self.rates[adapter] = rate if before is None else SMOOTHING * before + (1 - SMOOTHING) * rate
        self.noise[adapter] = self.noise[adapter].updated(fact.norm2, fact.trace)

    def _choose(self, round: int, pooled: Sequence[int]) -> tuple[int, ...]:
        kpool, scores = self._kpool, self._scores(round, pooled)
        k = self.auto.next() if self.auto is not None else int(kpool.k)
        return select_adapters(kpool.routing, k, self.shipped_in, round, self._seed, scores)

    def _scores(self, round: int, pooled: Sequence[int]) -> list[float]:
        if self._kpool.routing is Routing.LOSS_AWARE:
            return buffered_change(self.rates, pooled, self.shipped_in, round)
        if self._kpool.routing is Routing.CONVERGED:
            return clearness([noise.signal_to_noise for noise in self.noise])
        return []
