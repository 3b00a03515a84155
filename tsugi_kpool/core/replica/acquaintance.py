"""The members of a group are connected to each other and to nobody else: a pure verdict on what they report.

Gloo takes whoever connects to its port for the member that it waits for, if eight bytes are right. So each member
reports its connections to the others over an authenticated channel. A connection has the same name at both ends, so
only a member can have a connection that another member has named.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import msgspec

LENGTH_BYTES = 8
MAX_NAME = 255
"""Length of a host's name, in bytes."""
NAME_BYTES = 8
"""Length of a connection's name, in bytes: a hash of the addresses and ports of both ends."""


class Connections(msgspec.Struct, frozen=True):
    """From every member of a group to all others, when it has formed. Read by all."""

    accepted: tuple[bytes, ...]
    """Names of the connections that have come in at the group's own port."""
    made: tuple[bytes, ...]
    """Names of the connections that have gone out since the group began; others of the same process may be among
    them."""


def name(near: tuple[str, int], far: tuple[str, int]) -> bytes:
    """Return the name of a connection; it is the same at both ends.

    Args:
        near: Address and port of this end.
        far: Address and port of the other end.
    """
    ends = sorted(f"{host}|{port}" for host, port in (near, far))
    return hashlib.sha256("|".join(ends).encode()).digest()[:NAME_BYTES]


def stranger(members: Sequence[Connections]) -> str | None:
    """Return why this group must not be used, or None. All members get the same answer, because all have the same
    reports.

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
    """Return the sizes of the two fixed parts of a gloo address, or None where it is malformed. (Host names differ in
    length.)

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
    """Return the length-prefixed field at `start` and where it ends; None for the field when the data are too
    short."""
    begin = start + LENGTH_BYTES
    end = begin + int.from_bytes(data[start:begin], "little")
    return (data[begin:end], end) if begin <= end <= len(data) else (None, end)
