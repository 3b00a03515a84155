"""The arithmetic of a round on the exchange: everybody's parts in, one coded mean out, in numpy.

    want = sum of share * decode(part), in the order of the members, + rest
    u    = encode(want)
    rest = want - decode(u)

All members apply u, so their anchors are the same bits whatever the parts were; `rest` waits for the next round of
the same adapters.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from tsugi_kpool.codec import header as heads
from tsugi_kpool.codec.coding import Bytes, Floats, coded_bytes, decode, finite
from tsugi_kpool.codec.owner import average
from tsugi_kpool.core.settings import Payload

from .frames import BadFrame, Part, Result

MOST_NUMBERS = 1 << 32
"""Of a part: more than any LoRA has."""


@dataclass(frozen=True)
class Reduced:
    """A round's result; nothing of it counts before the hub's Commit."""

    result: Result
    body: Bytes
    """Everybody's headers and the coded mean."""
    rest: Floats
    """[K, P] fp32: what is left for the adapters' next round."""


def part_bytes(part: Part) -> int:
    """Return how long the raw bytes of this part must be.

    Raises:
        BadFrame: there is no such round.
    """
    k = len(part.adapters)
    if not 0 < k * part.size <= MOST_NUMBERS or min(part.adapters) < 0 or len(set(part.adapters)) < k:
        raise BadFrame(f"a part of {k} adapters of {part.size} numbers")
    if min(part.generation, part.round, part.version, part.settled or 0) < 0 or not part.members:
        raise BadFrame("a part of no round")
    if len(set(part.members)) < len(part.members):
        raise BadFrame("a round with a member twice")
    try:
        return heads.header_bytes(k) + coded_bytes(k * part.size, Payload(part.payload))
    except ValueError as error:
        raise BadFrame(f"a part coded as {part.payload[:20]!r}") from error


@dataclass(frozen=True)
class Given:
    """A part as it has come."""

    part: Part
    body: bytes | bytearray


def reduce(part: Part, parts: Mapping[int, Given], rest: Floats) -> Reduced:
    """Return what a round amounts to.

    Args:
        part: The round.
        parts: The header and codes of every member that is counted.
        rest: [K, P] fp32: what the adapters' rounds before have left. Not written to.
    """
    k, payload = len(part.adapters), Payload(part.payload)
    counted = [rank for rank, member in enumerate(part.members) if member in parts]
    given = [parts[part.members[rank]] for rank in counted]
    missed = tuple(rank for rank, member in enumerate(part.members) if member not in parts)
    durables = tuple(each.part.durable for each in given)
    raw = [np.frombuffer(each.body, np.uint8) for each in given]
    headers = np.stack([heads.read(each, k) for each in raw])
    codes = [each[heads.header_bytes(k) :] for each in raw]
    # Before anything is summed: one NaN would spoil every mean.
    whole = [finite(each, k * part.size, payload) for each in codes]
    if bad := heads.unusable(headers, whole):
        unusable = tuple(counted[place] for place in bad)
        said = Result(part.generation, part.round, unusable, missed=missed, durables=durables)
        return Reduced(said, raw[0][:0], rest)
    measured = bool(headers[:, heads.NORM2_SUM].sum() > 0)
    found = average(codes, heads.shares(headers[:, heads.TOKENS]), rest, payload, keep=part.keep, plain=measured)
    norm2 = None if found.plain_norm2 is None else tuple(found.plain_norm2.tolist())
    body = np.concatenate([headers.reshape(-1).view(np.uint8), found.out])
    said = Result(part.generation, part.round, plain_norm2=norm2, missed=missed, durables=durables)
    return Reduced(said, body, found.rest)


def check_result(part: Part, result: Result) -> None:
    """Check what the exchange says of a round.

    Raises:
        BadFrame: it is no result of this part's round.
    """
    if not set(result.unusable).issubset(range(len(part.members))):
        raise BadFrame(f"unusable parts {result.unusable} in a round of {len(part.members)} members")
    if result.plain_norm2 is not None and len(result.plain_norm2) != len(part.adapters):
        raise BadFrame(f"{len(result.plain_norm2)} norms of {len(part.adapters)} adapters")
    missed = set(result.missed)
    counted = len(part.members) - len(missed)
    if not missed.issubset(range(len(part.members))) or not 0 < counted == len(result.durables):
        raise BadFrame(f"{len(result.durables)} of {len(part.members)} members counted, {len(missed)} not")


def opened(part: Part, result: Result, body: Bytes) -> tuple[heads.Header, Floats]:
    """Return the headers [counted, ROWS, K] and the mean [K, P] of a result, as every member reads them.

    Raises:
        BadFrame: it is no result of this part's round.
    """
    k, payload = len(part.adapters), Payload(part.payload)
    counted = len(part.members) - len(result.missed)
    front = counted * heads.header_bytes(k)
    if body.size != front + coded_bytes(k * part.size, payload):
        raise BadFrame(f"a result of {body.size} bytes for a round of {counted} members")
    headers = body[:front].copy().view(np.float64).reshape(counted, heads.ROWS, k)
    return headers, decode(body[front:], k * part.size, payload).reshape(k, part.size)
