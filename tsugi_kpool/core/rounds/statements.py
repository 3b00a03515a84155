"""What an owner of a two-stage round signs: all that it tells every member alike.

A statement is of one round of one generation, and its key of one process: an old one fits no other round.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Iterable

DIGEST_BYTES = 32
SIGNATURE_BYTES = 64
"""Ed25519's."""
KEY_BYTES = 32
"""Of a public key."""
UNSIGNED = bytes(SIGNATURE_BYTES)
"""Stands in the place of a signature where nobody signs."""
_ABOUT = b"tsugi statement of a two-stage round\0"
_ROUND = struct.Struct("!QQ")

Verify = Callable[[bytes, bytes, bytes], bool]
"""Whether this public key has made this signature of this text."""


def digest_of(parts: Iterable[bytes | memoryview]) -> bytes:
    """Return the digest of what a member tells all others."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.digest()


def statement(generation: int, round: int, digest: bytes) -> bytes:
    """Return the text that is signed."""
    return _ABOUT + _ROUND.pack(generation, round) + digest


def nobody(key: bytes, signature: bytes, text: bytes) -> bool:
    """Stand for `Verify` where there is none: no signature is believed."""
    del key, signature, text
    return False
