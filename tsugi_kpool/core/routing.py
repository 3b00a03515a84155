"""Which K of N adapters a round ships: a pure function of facts that hub and replicas agree on."""

from __future__ import annotations

import random
from collections.abc import Sequence

from .settings import Routing

MAX_AGE_TURNS = 4
"""A random choice may leave an adapter out for this many turns of N/K rounds, then it is shipped first."""


def select_adapters(
    routing: Routing, k: int, shipped_in: Sequence[int], round: int, seed: int = 0
) -> tuple[int, ...]:
    """Choose the adapters of `round`, in ascending order.

    Args:
        routing: The policy.
        k: How many; at most ``len(shipped_in)``.
        shipped_in: For each adapter the round that shipped it last, 0 when none did.
        round: The round's number, from 1.
        seed: The run's seed; `random` is a function of (seed, round), not of a hidden state.
    """
    by_age = sorted(range(len(shipped_in)), key=lambda adapter: (shipped_in[adapter], adapter))
    if routing is Routing.ROUND_ROBIN:
        return tuple(sorted(by_age[:k]))
    max_age = MAX_AGE_TURNS * -(-len(shipped_in) // k)
    overdue = [a for a in by_age if round - shipped_in[a] > max_age][:k]
    others = [a for a in range(len(shipped_in)) if a not in overdue]
    drawn = random.Random(f"{seed}:{round}").sample(others, k - len(overdue))
    return tuple(sorted(overdue + drawn))
