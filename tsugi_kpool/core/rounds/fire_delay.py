"""A FIRE that is delayed: a step that is about to end makes this round instead of being a round late.

docs/design.md section 3, Phase correction. The hub knows when it heard of each member's newest step and how
long it took, so it expects the next one to take as long.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

WORTH = 4.0
"""A step is waited for only if it takes this many times the longest delay: of shorter ones some is always about
to end, and each is worth less than the delay."""


class Step(msgspec.Struct, frozen=True, gc=False):
    """A member's step in progress, as the hub sees it; times are the hub's."""

    replica: int
    began_s: float
    """When the one before it ended."""
    seconds: float
    """What the one before it took."""


def awaited(now_s: float, ready_s: float, fire_delay_s: float, steps: Iterable[Step]) -> tuple[int, ...]:
    """The replicas for whose steps the round is delayed at `now_s`; empty means fire.

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
