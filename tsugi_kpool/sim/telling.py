"""What the members of a simulated two-stage round tell each other, and who of them lies.

A signature stands for Ed25519's, which needs more than the standard library: nobody here makes another one's.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping
from dataclasses import dataclass

from tsugi_kpool.core.messages import Compare, Compared, Fire
from tsugi_kpool.core.rounds.statements import UNSIGNED, digest_of, statement

TRUTH = b"what all are told"


@dataclass(frozen=True)
class Lie:
    """What a member does in two-stage rounds from some time on.

    `kind`: sign (as an owner it tells one other something else, and signs it), deceive (it does not sign that),
    accuse (it says that an owner has told it something else).
    """

    kind: str
    liar: int
    from_s: float
    victims: tuple[int, ...] = ()
    """One of these in each round, by lot; empty: any other member."""


class Telling:
    """The rounds of a fleet, as far as members may be told different things in them."""

    def __init__(self, seed: int) -> None:
        self.lies: list[Lie] = []
        self._draw = random.Random(f"{seed}:lies")
        self._fire: Fire | None = None
        self._apart: dict[tuple[int, int], bool] = {}
        """(by whom, to whom) something else was told in the newest round -> whether it is signed."""

    def begin(self, fire: Fire, now_s: float) -> None:
        """A round is reduced: whoever lies chooses its victim."""
        self._fire, self._apart = fire, {}
        for lie in self.lies:
            others = [each for each in lie.victims or fire.members if each in fire.members and each != lie.liar]
            if lie.from_s <= now_s and lie.liar in fire.members and others:
                pair = (lie.liar, self._draw.choice(others))
                self._apart[pair[::-1] if lie.kind == "accuse" else pair] = lie.kind == "sign"

    def vote(self, replica: int, digest: str) -> str:
        """Return what a member says that the round gives."""
        return f"{digest} apart" if any(to == replica for _, to in self._apart) else digest

    def compared(self, order: Compare, replica: int, keys: Mapping[int, bytes]) -> Compared | None:
        """Return what a member shows; None when the hub asks for another round than the newest one."""
        fire = self._fire
        if fire is None or (fire.generation, fire.round) != (order.generation, order.round):
            return None
        digests, signatures = [], []
        for sender in fire.members:
            signed = self._apart.get((sender, replica))
            digests.append(digest_of((TRUTH if signed is None else b"something else",)))
            text = statement(fire.generation, fire.round, digests[-1])
            signatures.append(UNSIGNED if signed is False else sign(keys[sender], text))
        return Compared(0, 0, "", fire.generation, fire.round, b"".join(digests), b"".join(signatures))


def key_of(incarnation: str) -> bytes:
    """Return the key of a process."""
    return hashlib.sha256(incarnation.encode()).digest()


def sign(key: bytes, text: bytes) -> bytes:
    """Return what stands for a signature."""
    return hashlib.sha512(key + text).digest()


def verify(key: bytes, signature: bytes, text: bytes) -> bool:
    """Return whether it is that of this key and text."""
    return signature == sign(key, text)
