"""The trigger: a pure function that says from the pool's facts whether a round fires, and why."""

from __future__ import annotations

from enum import StrEnum

import msgspec

from tsugi_kpool.core.settings import KPool, Trigger

from .noise import Noise


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


def decide(settings: KPool, pooled: int, replicas: int, link_free: bool, noise: Noise) -> FireVerdict:
    """Decide whether a round of the selected adapters is worth it now.

    Args:
        settings: Bounds and rule; its counts are per replica.
        pooled: Steps that all members have buffered for the selected adapters.
        replicas: Members of the generation.
        link_free: Whether the previous round has been reduced.
        noise: What the previous rounds said about the noise.
    """
    target, reason = _target(settings, replicas, noise)
    if not link_free:
        return FireVerdict(False, Reason.LINK_BUSY, target)
    if pooled >= settings.max_steps * replicas:
        return FireVerdict(True, reason if pooled >= target else Reason.CAP, target)
    if pooled < target:
        return FireVerdict(False, Reason.FILLING, target)
    return FireVerdict(True, reason, target)


def _target(settings: KPool, replicas: int, noise: Noise) -> tuple[float, Reason]:
    """Return the pooled steps to wait for, inside the bounds, and the reason that a round fired then will carry."""
    low, high = settings.min_steps * replicas, settings.max_steps * replicas
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
