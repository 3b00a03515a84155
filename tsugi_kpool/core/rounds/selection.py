"""Routing: which K of N adapters the next round ships, and the facts about each adapter that the choice uses.

A round's adapters are chosen once, when the round before it has been committed. The hub alone chooses, and tells the
members in its orders: agreement is by the order. The facts behind a choice are floating-point numbers of one member,
so that nothing may ever depend on two machines computing the same choice.
"""

from __future__ import annotations

from collections.abc import Sequence

from tsugi_kpool.core.messages import AdapterFacts, Fire
from tsugi_kpool.core.settings import KPool, Routing

from .link_cost import AutoK
from .noise import SMOOTHING

MAX_AGE_TURNS = 4
"""`loss_aware` may leave an adapter out for this many turns of N/K rounds; then it is shipped first."""
UNKNOWN = float("inf")
"""Score of an adapter without any facts yet: it is shipped before the others."""


class Selection:
    """Takes in the facts of each round and chooses the adapters of the next one."""

    def __init__(self, kpool: KPool) -> None:
        self._kpool = kpool
        self.shipped_in = [0] * kpool.n
        """The round that shipped each adapter last."""
        self.rates: list[float | None] = [None] * kpool.n
        """Norm of the mean change per pooled step, averaged over rounds; None before the first."""
        self.auto = AutoK(kpool.n, kpool.round_timeout_s) if isinstance(kpool.k, str) else None
        """Chooses K, unless the user has."""
        self.due = self._choose(1, [0] * kpool.n)
        """The adapters of the next round."""

    def committed(self, fire: Fire, facts: Sequence[AdapterFacts], pooled: Sequence[int]) -> None:
        """Take in a round, and choose the adapters of the next one.

        Args:
            fire: The round.
            facts: What its first member's Reduced says of its adapters; may be empty.
            pooled: Steps that all members have buffered for each adapter; this round's shipment may be included.
        """
        left = list(pooled)
        for adapter in fire.adapters:
            self.shipped_in[adapter] = fire.round
        for adapter, fact in zip(fire.adapters, facts, strict=False):
            left[adapter] = max(0, left[adapter] - fact.steps)
            self._learn(adapter, fact)
        self.due = self._choose(fire.round + 1, left)

    def timed(self, shipped: int, payload_bytes: int, seconds: float, step_s: float) -> None:
        """Take in what a round cost. Called before `committed`, which chooses with it."""
        if self.auto is not None:
            self.auto.committed(shipped, payload_bytes, seconds, step_s)

    def _learn(self, adapter: int, fact: AdapterFacts) -> None:
        if fact.steps:
            rate, before = fact.change_norm / fact.steps, self.rates[adapter]
            self.rates[adapter] = rate if before is None else SMOOTHING * before + (1 - SMOOTHING) * rate

    def _choose(self, round: int, pooled: Sequence[int]) -> tuple[int, ...]:
        kpool, scores = self._kpool, self._scores(round, pooled)
        k = self.auto.next() if self.auto is not None else int(kpool.k)
        return select_adapters(kpool.routing, k, self.shipped_in, round, scores)

    def _scores(self, round: int, pooled: Sequence[int]) -> list[float]:
        if self._kpool.routing is Routing.LOSS_AWARE:
            return buffered_change(self.rates, pooled, self.shipped_in, round)
        return []


def select_adapters(
    routing: Routing,
    k: int,
    shipped_in: Sequence[int],
    round: int,
    scores: Sequence[float] = (),
) -> tuple[int, ...]:
    """Choose the adapters of `round`, in ascending order.

    Args:
        routing: The policy.
        k: How many; at most ``len(shipped_in)``.
        shipped_in: For each adapter the round that shipped it last, 0 when none did.
        round: The round's number, from 1.
        scores: For `loss_aware`: the highest are chosen, of equal ones the oldest.
    """
    by_age = sorted(range(len(shipped_in)), key=lambda adapter: (shipped_in[adapter], adapter))
    if routing is Routing.ROUND_ROBIN:
        return tuple(sorted(by_age[:k]))
    max_age = MAX_AGE_TURNS * -(-len(shipped_in) // k)
    overdue = [a for a in by_age if round - shipped_in[a] > max_age][:k]
    others = [a for a in by_age if a not in overdue]
    others.sort(key=lambda adapter: -scores[adapter])  # stable: the oldest of equal ones first
    return tuple(sorted(overdue + others[: k - len(overdue)]))


def buffered_change(
    rates: Sequence[float | None], pooled: Sequence[int], shipped_in: Sequence[int], round: int
) -> list[float]:
    """Scores of `loss_aware`: estimated size of the buffered change, times the rounds that the adapter has waited.

    Args:
        rates: For each adapter the change per pooled step in earlier rounds; None when it is unknown.
        pooled: Steps that all members have buffered for it now.
        shipped_in: The round that shipped it last.
        round: The round to choose for.
    """
    facts = zip(rates, pooled, shipped_in, strict=True)
    return [UNKNOWN if rate is None else rate * steps * (round - last) for rate, steps, last in facts]
