"""Which K of N adapters a round ships: pure functions of what every member's Landed says with the same digest.

The hub alone chooses, and tells the members in its orders: agreement is by the order. The facts behind a choice are
floating-point numbers of one member, so that nothing may ever depend on two machines computing the same choice.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from .settings import Routing

MAX_AGE_TURNS = 4
"""Every policy but the taking of turns may leave an adapter out for this many turns of N/K rounds; then it is shipped
first."""
UNKNOWN = float("inf")
"""Score of an adapter of which nothing is known yet: it is shipped before the others."""


def select_adapters(
    routing: Routing,
    k: int,
    shipped_in: Sequence[int],
    round: int,
    seed: int = 0,
    scores: Sequence[float] = (),
) -> tuple[int, ...]:
    """Choose the adapters of `round`, in ascending order.

    Args:
        routing: The policy.
        k: How many; at most ``len(shipped_in)``.
        shipped_in: For each adapter the round that shipped it last, 0 when none did.
        round: The round's number, from 1.
        seed: The run's seed; `random` is a function of (seed, round), not of a hidden state.
        scores: For `loss_aware` and `converged`: the highest are chosen, of equal ones the oldest.
    """
    by_age = sorted(range(len(shipped_in)), key=lambda adapter: (shipped_in[adapter], adapter))
    if routing is Routing.ROUND_ROBIN:
        return tuple(sorted(by_age[:k]))
    max_age = MAX_AGE_TURNS * -(-len(shipped_in) // k)
    overdue = [a for a in by_age if round - shipped_in[a] > max_age][:k]
    others = [a for a in by_age if a not in overdue]
    wanted = k - len(overdue)
    if routing is Routing.RANDOM:
        chosen = random.Random(f"{seed}:{round}").sample(sorted(others), wanted)
    else:
        chosen = sorted(others, key=lambda adapter: -scores[adapter])[:wanted]  # stable: the oldest of equal ones
    return tuple(sorted(overdue + chosen))


def buffered_change(
    rates: Sequence[float | None], pooled: Sequence[int], shipped_in: Sequence[int], round: int
) -> list[float]:
    """Scores of `loss_aware`: estimated size of the buffered change, times the rounds that the adapter has waited.

    Args:
        rates: For each adapter the change per pooled micro-step in earlier rounds; None when it is unknown.
        pooled: Micro-steps that all members have buffered for it now.
        shipped_in: The round that shipped it last.
        round: The round to choose for.
    """
    facts = zip(rates, pooled, shipped_in, strict=True)
    return [UNKNOWN if rate is None else rate * steps * (round - last) for rate, steps, last in facts]


def clearness(ratios: Sequence[float | None]) -> list[float]:
    """Scores of `converged`: the signal-to-noise ratio of a micro-step; what is unknown comes first."""
    return [UNKNOWN if ratio is None else ratio for ratio in ratios]
