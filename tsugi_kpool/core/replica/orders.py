"""Validation of the hub's orders: a pure verdict by what a replica knows of its run, before it obeys."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tsugi_kpool.core.messages import Check, Commit, Finish, Fire, Generation, Lease, Message

CANNOT_BE = "the hub orders what cannot be: {}"
KEY_BYTES = 32
"""Of a generation's key."""
UNKNOWN = 2**63
"""Stands for a limit that a replica does not know: every order is within it."""


@dataclass(frozen=True)
class Limits:
    """Limits that no honest hub of this run exceeds."""

    replicas: int = UNKNOWN
    """The planned replicas, and those that may join later."""
    adapters: int = UNKNOWN
    samples: int = UNKNOWN
    """Positions of the data order."""
    micro_batch: int = UNKNOWN
    """Samples in one step of a replica that is not slow."""
    sealed: bool = False
    """What replicas send each other leaves the machine, and a generation of several brings the key that seals it."""


NO_LIMITS = Limits()


def impossible(order: Message, replica: int, limits: Limits, begun: bool) -> str | None:
    """Return why no honest hub sends this order, in a few words; None for a valid one.

    Args:
        order: Of the hub; its whole numbers are known to be at least 0.
        replica: Who has received it.
        limits: Of the run.
        begun: Whether the replica has been ordered into a generation before.
    """
    match order:
        case Generation():
            fault = _generation(order, replica, limits.replicas) or _adapters(order.active, limits.adapters)
            return fault or _key(order, limits.sealed)
        case Fire():
            none = None if order.adapters else "a round of no adapter"
            return none or _adapters(order.adapters, limits.adapters) or _adapters(order.active, limits.adapters)
        case Check():
            return _check(order, limits.replicas)
        case Commit():
            return _adapters(order.active, limits.adapters)
        case Lease():
            return _lease(order, limits)
        case Finish() if not begun:  # only who has been in a generation can have finished
            return f"the end, before replica {replica} has been in any generation"
    return None


def _generation(order: Generation, replica: int, replicas: int) -> str | None:
    members = set(order.members)
    if replica not in members:
        return f"a generation without replica {replica}, which it is sent to"
    if len(members) < len(order.members) or max(members) >= replicas:
        return f"a generation of {len(order.members)} members up to {max(members)}, in a run of {replicas} replicas"
    if not members.issuperset(order.newcomers):
        return "newcomers that are no members"
    if order.newcomers and order.donor not in members:
        return f"replica {order.donor} as the donor, which is no member"
    return None


def _key(order: Generation, sealed: bool) -> str | None:
    if sealed and len(order.members) > 1 and len(order.group_key) != KEY_BYTES:
        return "a generation without the key that seals what replicas send each other"
    return None


def _check(order: Check, replicas: int) -> str | None:
    named = {order.owner, *order.checkers}
    if len(set(order.checkers)) < len(order.checkers) or max(named) >= replicas:
        return f"a check of replica {order.owner} by {len(order.checkers)}, in a run of {replicas} replicas"
    return None


def _adapters(adapters: Sequence[int], most: int) -> str | None:
    if len(set(adapters)) < len(adapters):
        return "one adapter twice"
    largest = max(adapters, default=0)
    return f"adapter {largest}, of a pool of {most}" if largest >= most else None


def _lease(lease: Lease, limits: Limits) -> str | None:
    if not lease.start <= lease.stop <= limits.samples:
        return f"samples {lease.start} to {lease.stop}, of {limits.samples}"
    if lease.micro_batch > limits.micro_batch:
        return f"micro-batches of {lease.micro_batch}, where {limits.micro_batch} is the most"
    return None
