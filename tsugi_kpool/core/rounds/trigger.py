"""The trigger: a pure function that says from the pool's facts whether a round fires, and why."""

from __future__ import annotations

import math
from collections.abc import Iterable
from enum import StrEnum

import msgspec

from tsugi_kpool.core.settings import KPool, Trigger

from .noise import Noise

SLOWER = 1.5
"""A member whose step takes less than this times the usual one counts in full: its step comes half a step later."""


LACKING = 0.25
"""Of a usual step: a round that lacks no more than this is not worth the wait for a whole one."""


class Reason(StrEnum):
    """Why a round fires, or does not fire yet."""

    LINK_BUSY = "link busy"
    FILLING = "filling"
    CAP = "cap"
    COUNT = "count"
    LINK_FREE = "link free"
    CONVERGED = "converged"
    PARTING = "parting"
    FINAL = "final"


class FireVerdict(msgspec.Struct, frozen=True, gc=False):
    """Whether to fire, why, and the pooled steps at which the next round is expected."""

    fire: bool
    reason: Reason
    target: float


def together(seconds: Iterable[float]) -> float:
    """Return the steps that all members make while the usual one makes one; of a slow one's step it is a share.

    With 8 members of which one takes 4 times as long it is 7.25.

    Args:
        seconds: Each member's mean step; 0 is not known, and counts as usual.
    """
    steps = sorted(seconds)
    known = [each for each in steps if each > 0]
    if not known:
        return float(len(steps))
    usual = known[(len(known) - 1) // 2]
    return len(steps) - len(known) + sum(usual / each if each >= SLOWER * usual else 1.0 for each in known)


def least(steps: int, pace: float) -> int:
    """Return how many pooled steps a round needs that is to have `steps`, of a fleet of this pace.

    Where a little is lacking when the usual member has made a whole number of steps, the round does not wait for all
    of its next one: 8 steps of a fleet that makes 7.25 in that time are 7.
    """
    usual = steps / pace if pace > 0 else 0.0
    if usual < 1 or usual % 1 > LACKING:
        return steps
    return min(steps, math.ceil(pace * math.floor(usual) - 0.5))


def decide(
    settings: KPool, pooled: int, replicas: int, link_free: bool, noise: Noise, pace: float | None = None
) -> FireVerdict:
    """Decide whether a round of the selected adapters is worth it now.

    Args:
        settings: Bounds and rule; its counts are per replica.
        pooled: Steps that all members have buffered for the selected adapters.
        replicas: Members of the generation.
        link_free: Whether the previous round has been reduced.
        noise: What the previous rounds said about the noise.
        pace: Steps that they make while the usual one makes one (`together`); None: as many as they are.
    """
    target, reason = _target(settings, replicas, noise, float(replicas) if pace is None else pace)
    if not link_free:
        return FireVerdict(False, Reason.LINK_BUSY, target)
    if pooled >= settings.max_steps * replicas:
        return FireVerdict(True, reason if pooled >= target else Reason.CAP, target)
    if pooled < target:
        return FireVerdict(False, Reason.FILLING, target)
    return FireVerdict(True, reason, target)


def _target(settings: KPool, replicas: int, noise: Noise, pace: float) -> tuple[float, Reason]:
    """Return the pooled steps to wait for, inside the bounds, and the reason that a round fired then will carry."""
    low, high = least(settings.min_steps * replicas, pace), settings.max_steps * replicas
    if settings.trigger is Trigger.COUNT:
        return settings.count * replicas, Reason.COUNT
    if isinstance(settings.eps, str):
        return low, Reason.LINK_FREE
    needed = noise.needed(settings.eps)
    if needed is None:
        return settings.count * replicas, Reason.COUNT
    if needed > high:
        return high, Reason.CAP
    return max(low, needed), Reason.CONVERGED
