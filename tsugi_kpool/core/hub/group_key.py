"""The key with which a generation's members seal what they send each other (engine.sealed)."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass
class GroupKeys:
    """Makes the key of the present generation."""

    run: str
    """Its name."""
    secret: str = ""
    """The hub's; empty where members send in plain. Written down nowhere."""
    incarnations: tuple[str, ...] = ()
    """The ids of the members' processes when the generation was opened: another may come in a member's place while
    the order is repeated."""

    def of(self, generation: int) -> bytes:
        """Return the key of the present generation, which has this number."""
        return group_key(self.secret, self.run, generation, self.incarnations)


def group_key(secret: str, run: str, generation: int, incarnations: Sequence[str]) -> bytes:
    """Return the key of a generation; empty without a secret.

    It is made, not drawn: the order is repeated with the same key, by the next hub of the same run, too. No two
    generations have the same one, and neither have two runs that share a key file: no process is in both.

    Args:
        secret: The hub's.
        run: Its name.
        generation: Its number.
        incarnations: The random ids of its members' processes, in the order of the members.
    """
    if not secret:
        return b""
    told = " ".join(["tsugi group", str(generation), *incarnations, run]).encode()
    return hmac.new(secret.encode(), told, hashlib.sha256).digest()
