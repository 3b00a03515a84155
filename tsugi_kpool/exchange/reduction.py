"""The arithmetic of a round on the exchange: everybody's parts in, one coded mean out, in numpy.

    want = sum of share * decode(part), in the order of the members, + rest
    u    = encode(want)
    rest = int8 of (want - decode(u))

All members apply u, so their anchors are the same bits whatever the parts were; `rest` waits for the next round of
the same adapters. It is coded, too: what that loses is 1/254 of what coding the mean has lost.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tsugi_kpool.codec import header as heads
from tsugi_kpool.codec.coding import Bytes, Floats, coded_bytes, decode, encode, finite
from tsugi_kpool.codec.owner import Mean, mean_of
from tsugi_kpool.core.rounds.told import told_of
from tsugi_kpool.core.settings import Payload

from .frames import BadFrame, Part, Result

MOST_NUMBERS = 1 << 32
"""Of a part: more than any LoRA has."""
LARGEST = 1 << 53
"""No count of ours comes near it, and the hub takes in no larger one, whoever reports it."""
LEFT = "left"
"""Name in a checkpoint: [N, bytes], what an exchange has left over."""
REST = Payload.INT8
"""The code of what is left over, whatever the code of the parts is."""


@dataclass(frozen=True)
class Reduced:
    """A round's result; nothing of it counts before the hub's Commit."""

    result: Result
    body: Bytes
    """Everybody's headers and the coded mean."""


@dataclass(frozen=True)
class Left:
    """What is left over of an adapter, for its next round."""

    size: int
    """P, its numbers."""
    coded: Bytes
    """As `REST`; empty when nothing is left."""


def part_bytes(part: Part) -> int:
    """Return how long the raw bytes of this part must be.

    Raises:
        BadFrame: there is no such round.
    """
    k = len(part.adapters)
    if not 0 < k * part.size <= MOST_NUMBERS or min(part.adapters) < 0 or len(set(part.adapters)) < k:
        raise BadFrame(f"a part of {k} adapters of {part.size} numbers")
    counts = (part.generation, part.round, part.version, part.settled or 0, part.sequence, part.durable)
    if min(counts) < 0 or max(counts) > LARGEST or not part.members:
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


def reduce(part: Part, parts: Mapping[int, Given], rest: Floats) -> tuple[Reduced, Mean | None]:
    """Return what a round amounts to, and what `left_by` is made of; None where the round is unusable.

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
        return Reduced(said, raw[0][:0]), None
    measured = bool(headers[:, heads.NORM2_SUM].sum() > 0)
    found = mean_of(codes, heads.shares(headers, len(part.members)), rest, payload, keep=part.keep, plain=measured)
    norm2 = None if found.plain_norm2 is None else tuple(found.plain_norm2.tolist())
    body = np.concatenate([headers.reshape(-1).view(np.uint8), found.out])
    said = Result(part.generation, part.round, plain_norm2=norm2, missed=missed, durables=durables)
    return Reduced(said, body), found


def told_by(part: Part, reduced: Reduced) -> str:
    """Return what a result says of everybody's parts, in one word; nothing of one that cannot be applied."""
    result, k = reduced.result, len(part.adapters)
    if result.unusable:
        return ""
    missed = set(result.missed)
    counted = [member for rank, member in enumerate(part.members) if rank not in missed]
    front = len(counted) * heads.header_bytes(k)
    headers = reduced.body[:front].copy().view(np.float64).reshape(len(counted), heads.ROWS, k)
    return told_of(counted, heads.weights_of(headers), result.durables)


def left_by(part: Part, mean: Mean) -> Sequence[Left]:
    """Return what coding a mean has lost, of each of its adapters."""
    payload = Payload(part.payload)
    if payload is Payload.FP32 or not mean.keep:
        return [Left(part.size, np.empty(0, np.uint8)) for _ in part.adapters]
    return [Left(part.size, encode(row, REST)) for row in mean.lost(payload)]


def left_in(part: Part, coded: Bytes) -> Sequence[Left] | None:
    """Return what is left over by a round, of its bytes one after the other; None when there are no such ones, or no
    numbers: one would spoil every mean after it."""
    k = len(part.adapters)
    if not k or not 0 < part.size <= MOST_NUMBERS or coded.size not in (0, k * coded_bytes(part.size, REST)):
        return None
    rows = np.split(coded, k)
    if coded.size and not all(finite(row, part.size, REST) for row in rows):
        return None
    return [Left(part.size, row) for row in rows]


def left_rows(left: Mapping[int, Left], adapters: int) -> list[memoryview]:
    """Return what is left over of each adapter of a pool; nothing when there is nothing."""
    sizes = {each.size for each in left.values() if each.coded.size}
    if len(sizes) != 1:
        return []
    none = memoryview(bytes(coded_bytes(size := sizes.pop(), REST)))
    rows = (left.get(adapter) for adapter in range(adapters))
    return [row.coded.data if row and row.coded.size and row.size == size else none for row in rows]


def left_of(whole: Bytes, size: int) -> dict[int, Left]:
    """Return what is left over, by adapter.

    Args:
        whole: [N, bytes] of `left_rows`.
        size: P, numbers of an adapter.

    Raises:
        ValueError: it is of another pool, or holds what are no numbers.
    """
    if whole.ndim != 2 or whole.shape[1] != coded_bytes(size, REST):
        raise ValueError(f"what is left over has the shape {list(whole.shape)}, of adapters of {size} numbers")
    if not all(finite(row, size, REST) for row in whole):
        raise ValueError("what is left over are no numbers")
    return {adapter: Left(size, row) for adapter, row in enumerate(whole)}


def rest_of(left: Sequence[Left | None], size: int) -> Floats:
    """Return what is left over of these adapters, [K, P] fp32; zeros of those that have nothing of this size."""
    found = np.zeros((len(left), size), np.float32)
    for row, each in zip(found, left, strict=True):
        if each is not None and each.size == size and each.coded.size:
            decode(each.coded, size, REST, row)
    return found


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
