"""The delay of a Fire: a step that is about to end goes into this round instead of the next one.

docs/design.md section 3, Phase correction. The hub knows when it heard of each member's newest step and how
long it took, so it expects the next one to take as long.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

WORTH = 4.0
"""A step is waited for only if it takes this many times the longest delay. Of shorter steps one is always about to
end, and each is worth less than the delay."""


class Step(msgspec.Struct, frozen=True, gc=False):
    """A member's step in progress, as the hub sees it; times are the hub's."""

    replica: int
    began_s: float
    """When the step before it ended."""
    seconds: float
    """Duration of the step before it."""


def awaited(now_s: float, ready_s: float, fire_delay_s: float, steps: Iterable[Step]) -> tuple[int, ...]:
    """Return the replicas whose steps the round waits for at `now_s`. Empty: fire now.

    Args:
        now_s: The present.
        ready_s: When the trigger first said that this round is worth it.
        fire_delay_s: The longest delay; at ready_s + fire_delay_s nobody is waited for any more.
        steps: Of the members that train.
    """
    until_s = ready_s + fire_delay_s
    if now_s >= until_s:
        return ()
    return tuple(
        step.replica
        for step in steps
        if step.seconds >= WORTH * fire_delay_s and ready_s <= step.began_s + step.seconds <= until_s
    )
