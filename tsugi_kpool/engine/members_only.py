"""A group of its members alone: if a stranger connects while it forms, it forms again."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import msgspec
from torch._C._distributed_c10d import Store

from tsugi_kpool.core.replica.acquaintance import Connections, stranger
from tsugi_kpool.errors import MachineError

from .group_sockets import Sockets

G = TypeVar("G")
CONNECTIONS = "connections/"
"""Prefix of the keys under which members report their connections; gloo's own keys begin otherwise."""
TRIES = 5
"""Attempts to form a group. Each has new ports, which a stranger would have to find within milliseconds."""


def acquainted(store: Store, sockets: Sockets, rank: int, world: int) -> str | None:
    """Exchange connections with the other members. Returns why the group must not be used, or None.

    Args:
        store: Reaches the members and nobody else.
        sockets: Of the group, which has formed.
        rank: Our place among the members.
        world: How many there are.

    Raises:
        RuntimeError: a member does not answer in time.
        MachineError: this system does not show a process its own sockets.
    """
    mine = sockets.connections()
    if mine is None:
        raise MachineError("this system does not show a process its own sockets, neither in /proc nor in /dev/fd")
    store.set(f"{CONNECTIONS}{rank}", msgspec.msgpack.encode(mine))  # type: ignore[arg-type]  # bytes will do
    said = [msgspec.msgpack.decode(store.get(f"{CONNECTIONS}{each}"), type=Connections) for each in range(world)]
    return stranger(said)


def refuse(store: Store, rank: int) -> None:
    """Tell the members that have formed a group that we have not: none of them may use it."""
    nothing = Connections(accepted=(), made=())
    store.set(f"{CONNECTIONS}{rank}", msgspec.msgpack.encode(nothing))  # type: ignore[arg-type]  # bytes will do


def members_only(form: Callable[[int], G], check: Callable[[G, int], str | None], close: Callable[[G], None]) -> G:
    """Form a group, again and again, until only its members are in it. All members agree on every attempt.

    Args:
        form: Makes the group of a try.
        check: Why that must not be used, or None.
        close: Lets it go.

    Raises:
        ConnectionError: strangers were in every one of them.
    """
    reason = None
    for attempt in range(TRIES):
        group = form(attempt)
        try:
            reason = check(group, attempt)
        except BaseException:
            close(group)
            raise
        if reason is None:
            return group
        close(group)
    raise ConnectionError(f"others connect to the group's ports while it forms, {TRIES} times in a row: {reason}")
