"""Whether the members of a group are connected to each other and to nobody else: a pure verdict on what they say.

A group of gloo's takes whoever connects to its port for the member that it waits for, if eight bytes are right. So
every member tells the others, over a way that is authenticated, which connections it has. A connection has the same
name at both ends, and nobody who is no member can make one that a member has named.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import msgspec

LENGTH_BYTES = 8
MAX_NAME = 255
"""Of a host."""
NAME_BYTES = 8
"""Of a connection: addresses and ports of both ends, hashed. There are fewer of these than names."""


class Connections(msgspec.Struct, frozen=True):
    """From every member of a group to all others, when it has formed. Read by all."""

    accepted: tuple[bytes, ...]
    """Names of the connections that have come in at the group's own port."""
    made: tuple[bytes, ...]
    """Names of those that have gone out since the group began; others of the same process may be among them."""


def name(near: tuple[str, int], far: tuple[str, int]) -> bytes:
    """The name of a connection: the same at both of its ends.

    Args:
        near: Address and port of this end.
        far: Address and port of the other end.
    """
    ends = sorted(f"{host}|{port}" for host, port in (near, far))
    return hashlib.sha256("|".join(ends).encode()).digest()[:NAME_BYTES]


def stranger(members: Sequence[Connections]) -> str | None:
    """Why this group must not be used, or None. All members get the same answer from the same words.

    Args:
        members: What every member says, in the order of ranks.
    """
    for rank, member in enumerate(members):
        others = {each for other, it in enumerate(members) if other != rank for each in it.made}
        foreign = [each for each in member.accepted if each not in others]
        if foreign:
            return f"{len(foreign)} of the connections to member {rank} come from no member"
    for high, member in enumerate(members):
        for low in range(high):
            if not _connected(member, members[low]):
                return f"members {low} and {high} are not connected to each other"
    return None


def _connected(one: Connections, other: Connections) -> bool:
    return bool(set(one.accepted) & set(other.made) or set(other.accepted) & set(one.made))


def shape(address: bytes) -> tuple[int, int] | None:
    """Sizes of the parts of what gloo calls its address, or None when it is none. Names of hosts differ in length.

    Gloo believes the lengths in it: it would reserve, and read, whatever memory another member names.

    Args:
        address: Length and host's name, length and socket address, then a number for each member. Little-endian.
    """
    name, after = _counted(address, 0)
    if name is None or len(name) > MAX_NAME:
        return None
    socket, end = _counted(address, after)
    return None if socket is None else (len(socket), len(address) - end)


def _counted(data: bytes, start: int) -> tuple[bytes | None, int]:
    """What stands there behind its own length, and where it ends; None when there is less."""
    begin = start + LENGTH_BYTES
    end = begin + int.from_bytes(data[start:begin], "little")
    return (data[begin:end], end) if begin <= end <= len(data) else (None, end)
