"""The frames between a member and the exchange: one byte for the kind, two lengths, a MessagePack map, raw bytes.

Everything is bounded before it is read: a connection that has not shown its place may send one small frame, a map has
64 KiB and for each member a few bytes more, and only three kinds carry raw bytes at all.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import Any

import msgspec

HEADER = struct.Struct("!BIQ")
"""Kind, bytes of the map, bytes after it."""
PROTOCOL = 3
MOST_HELLO = 1024
MOST_MAP = 1 << 20
"""A map names each member of a round: 100,000 of them have room."""
MOST_PART = 1 << 32
"""Upper limit of a part. What is larger than a part of its round can be is refused when its map is read."""
MOST_STATE = 1 << 37
"""Upper limit of a donor's state: it goes to the disk, chunk by chunk."""
CHUNK = 1 << 20
"""Bytes of a state that are sent in one frame."""


class Kind(IntEnum):
    """What a frame is."""

    HELLO = 1
    """A member: whose connection this is."""
    PART = 2
    """A member: its part of a round."""
    RESULT = 3
    """The exchange: what the round amounts to. It counts when STANDS has come."""
    STANDS = 4
    """The exchange: the result is on its disk."""
    REFUSED = 5
    """The exchange: this round will not be."""
    OFFER = 6
    """A donor: a piece of the fleet's state."""
    WANT = 7
    """A newcomer: asks for the fleet's state."""
    STATE = 8
    """The exchange: a piece of it."""
    ASK_LEFT = 9
    """A member: asks for what is left over after the newest round that it knows to be committed."""
    LEFT = 10
    """The exchange: a piece of it, for a checkpoint."""
    GOT = 11
    """A member: it has this round's result, and the next member may get it."""


FROM_MEMBER = frozenset({Kind.HELLO, Kind.PART, Kind.OFFER, Kind.WANT, Kind.ASK_LEFT, Kind.GOT})


class BadFrame(Exception):
    """A frame that cannot be; the text says why."""


class Map(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of all maps."""


class Hello(Map, frozen=True):
    """The place that a member holds, as in the sideband's Hello."""

    replica: int
    seat: str
    ticket: str = ""
    protocol: int = PROTOCOL


class Part(Map, frozen=True):
    """What the raw bytes are a part of. All members of a round say the same, but for the last three."""

    generation: int
    round: int
    version: int
    """Rounds committed before this one."""
    adapters: tuple[int, ...]
    members: tuple[int, ...]
    size: int
    """Numbers of an adapter."""
    payload: str
    settled: int | None = None
    """The newest round of an exchange that is committed, as the Fire says. 0: none; None: that is not known."""
    keep: bool = True
    """Whether what coding loses of the mean is kept for the next (kpool.error_feedback)."""
    ticket: str = ""
    """The Fire's: the hub has ordered this round, and says so of `settled` (core.hub.tickets)."""
    incarnation: str = ""
    """The process that has sent it."""
    sequence: int = 0
    """Which of its parts this is. The same part, given again, has the same number."""
    durable: int = 0
    """How many of its sender's samples are durable if it counts."""


class Result(Map, frozen=True):
    """What a round amounts to. The raw bytes are the headers of those who are counted, in the order of the members,
    and the coded mean; none where some parts are unusable."""

    generation: int
    round: int
    unusable: tuple[int, ...] = ()
    """Ranks whose parts are no numbers."""
    plain_norm2: tuple[float, ...] | None = None
    """Squared norm of each adapter's sum without weights; nil when it was not measured."""
    missed: tuple[int, ...] = ()
    """Ranks whose parts are not counted: they came too late, or never."""
    durables: tuple[int, ...] = ()
    """Of those who are counted: how many of each one's samples are durable if the round is committed."""


class Verdict(Map, frozen=True):
    """STANDS and REFUSED: of which round, and why. ASK_LEFT: after which round. GOT: of which round."""

    generation: int
    round: int
    reason: str = ""
    receipt: str = ""
    """STANDS: shows the hub what the exchange says of whose parts are in it (core.hub.tickets)."""


class Piece(Map, frozen=True):
    """OFFER, STATE and LEFT: a piece of a state, or of what is left over. WANT: `total` is 0."""

    generation: int
    offset: int = 0
    total: int = 0
    ticket: str = ""
    """OFFER: the Generation's. The hub has named this donor."""


MAPS: dict[Kind, type[Map]] = {
    Kind.HELLO: Hello,
    Kind.PART: Part,
    Kind.RESULT: Result,
    Kind.STANDS: Verdict,
    Kind.REFUSED: Verdict,
    Kind.OFFER: Piece,
    Kind.WANT: Piece,
    Kind.STATE: Piece,
    Kind.ASK_LEFT: Verdict,
    Kind.LEFT: Piece,
    Kind.GOT: Verdict,
}
BODIES = {Kind.PART: MOST_PART, Kind.RESULT: MOST_PART, Kind.OFFER: CHUNK, Kind.STATE: CHUNK, Kind.LEFT: CHUNK}
"""The kinds that carry raw bytes -> the most of them."""


def encode(kind: Kind, message: Map, body_bytes: int = 0) -> bytes:
    """Return header and map of a frame; so many raw bytes follow."""
    coded = msgspec.msgpack.encode(message)
    return HEADER.pack(kind, len(coded), body_bytes) + coded


def header(data: bytes) -> tuple[Kind, int, int]:
    """Return kind, bytes of the map and raw bytes of the frame that begins so.

    Raises:
        BadFrame: there is no such frame.
    """
    number, map_bytes, body_bytes = HEADER.unpack(data)
    if number not in MAPS:
        raise BadFrame(f"there is no frame of kind {number}")
    kind = Kind(number)
    most = MOST_HELLO if kind is Kind.HELLO else MOST_MAP
    if map_bytes > most or body_bytes > BODIES.get(kind, 0):
        raise BadFrame(f"{kind.name} of {map_bytes} and {body_bytes} bytes")
    return kind, map_bytes, body_bytes


def decode(kind: Kind, coded: bytes) -> Any:
    """Return the map of a frame of this kind.

    Raises:
        BadFrame: it is none.
    """
    try:
        return msgspec.msgpack.decode(coded, type=MAPS[kind])
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise BadFrame(f"{kind.name}: {error}") from error
