"""What binds a member to all that it sends in a round: the root of a hash tree over its shards.

The root and the way from a leaf to it take 16 bytes for each doubling of the members. A list of all digests would
take more than the shards themselves in a large fleet.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from .coding import Bytes

HASH_BYTES = 16


def depth(members: int) -> int:
    """Return how many steps lead from a leaf to the root."""
    return max(0, members - 1).bit_length()


def leaf(codes: Bytes) -> bytes:
    """Return the digest of what one owner gets."""
    return _hash(b"\0", codes.data)


def promises(leaves: Sequence[bytes]) -> list[bytes]:
    """Return, for each owner, the root and the way from its leaf to it, as bytes of one size."""
    levels, size = [list(leaves)], 1 << depth(len(leaves))
    levels[0] += [bytes(HASH_BYTES)] * (size - len(leaves))
    while len(levels[-1]) > 1:
        below = levels[-1]
        levels.append([_hash(b"\1", *below[at : at + 2]) for at in range(0, len(below), 2)])
    (root,) = levels[-1]
    ways = ([level[(at >> up) ^ 1] for up, level in enumerate(levels[:-1])] for at in range(len(leaves)))
    return [b"".join([root, *way]) for way in ways]


def promise_bytes(members: int) -> int:
    """Return the size of a promise to one owner."""
    return HASH_BYTES * (1 + depth(members))


def root_of(promise: bytes) -> bytes:
    """Return the root, which is the same in all promises of a member."""
    return promise[:HASH_BYTES]


def kept(promise: bytes, owner: int, codes: Bytes) -> bool:
    """Return whether these are the codes that were promised to this owner."""
    found = leaf(codes)
    for step in range(1, len(promise) // HASH_BYTES):
        beside = promise[step * HASH_BYTES : (step + 1) * HASH_BYTES]
        found = _hash(b"\1", *((beside, found) if owner & 1 else (found, beside)))
        owner >>= 1
    return found == root_of(promise)


def _hash(kind: bytes, *parts: bytes | memoryview) -> bytes:
    digest = hashlib.sha256(kind)
    for part in parts:
        digest.update(part)
    return digest.digest()[:HASH_BYTES]
