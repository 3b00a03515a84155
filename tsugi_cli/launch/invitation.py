"""The invitation to a run: what a user types after `tsugi join`, and the address at which the hub answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TextIO

from tsugi_kpool.errors import ConfigError, ExitCode
from tsugi_kpool.sideband import token as tokens
from tsugi_kpool.sideband.keys import Role, RunKeys
from tsugi_kpool.sideband.observer import answering

from .keys import token_text
from .refusals import patiently

PROBE_S = 3.0
"""Timeout of an answer at each of several addresses."""


@dataclass(frozen=True)
class Invitation:
    """Where the hub may be, and keys that it accepts."""

    keys: RunKeys
    addresses: tuple[str, ...]
    """Of the hub, as tcp://host:port: the first at which it answers is taken."""

    @staticmethod
    def read(address: str, token: str | None, insecure: bool, ask: TextIO) -> Invitation:
        """Read what the user has typed: an address, or a token that has the address in it.

        Raises:
            ConfigError: address or token are none, or the token is an observer's.
        """
        pasted = tokens.is_token(address)
        if pasted and (insecure or token is not None):
            option = "--insecure" if insecure else "--token"
            raise ConfigError([f"{option}: a token stands in the place of the address"])
        if insecure:
            tokens.check_address(address)
            return Invitation(replace(RunKeys.none(), address=address), (address,))
        text, named = (address, None) if pasted else (token_text(token, ask), address)
        keys, role, found = tokens.read_all(text, named)
        if role is not Role.MEMBER:
            raise ConfigError(["token: this is an observer's, which may only ask for the status"])
        return Invitation(keys, found)

    def settled(self, waits: bool, say: Callable[[str], object]) -> Invitation:
        """Return the same with the one address at which the hub answers; raises as `reached`."""
        keys = self.reached(waits, say)
        return Invitation(keys, (keys.address or "",))

    def reached(self, waits: bool, say: Callable[[str], object]) -> RunKeys:
        """Return the keys with the address at which the hub answers; of a single address it is not tried here.

        Args:
            waits: Try until the hub is there, however long that takes.
            say: Told, once for each reason, why it waits.

        Raises:
            SidebandError: it answers nowhere.
        """
        return patiently(
            lambda: answering(self.keys, self.addresses, PROBE_S), (ExitCode.UNREACHABLE,) if waits else (), say
        )
