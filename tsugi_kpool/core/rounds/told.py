"""What an exchange's result says of everybody's parts, in one word: all members vote on it, a few report it. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import msgspec

TOLD_CHARS = 32
"""128 bits in hexadecimal."""


def told_of(counted: Sequence[int], weights: Sequence[int], durables: Sequence[int]) -> str:
    """Return the digest of whose parts count, their tokens, and how many of each one's samples are durable with them.

    The digest of the anchors does not cover these: without this one, a member whose anchors are right could say that
    another one's part was missed, or that samples are durable that nobody has trained on.
    """
    told = msgspec.json.encode([list(counted), list(weights), list(durables)])
    return hashlib.sha256(told).hexdigest()[:TOLD_CHARS]
