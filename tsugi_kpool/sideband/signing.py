"""The signatures of owners: Ed25519, with a key pair that one process makes and nobody else has."""

from __future__ import annotations

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from tsugi_kpool.core.rounds.statements import UNSIGNED, statement


class Signer:
    """Signs what this process tells the others in its rounds. Of the aggregator's thread."""

    def __init__(self) -> None:
        self._private = Ed25519PrivateKey.generate()
        self.key = self._private.public_key().public_bytes_raw()
        """The public key."""
        self._newest = (0, 0)

    def sign(self, generation: int, round: int, digest: bytes) -> bytes:
        """Return the signature. A round is signed once: a second statement of it would be proof against us."""
        if (generation, round) <= self._newest:
            return UNSIGNED
        self._newest = (generation, round)
        return self._private.sign(statement(generation, round, digest))


def verified(key: bytes, signature: bytes, text: bytes) -> bool:
    """Return whether this public key has made this signature of this text."""
    try:
        Ed25519PublicKey.from_public_bytes(key).verify(signature, text)
    except (InvalidSignature, ValueError):  # ValueError: no such key
        return False
    return True
