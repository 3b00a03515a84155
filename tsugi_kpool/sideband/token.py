"""Tokens: one line to paste that holds all another machine needs to talk to a hub.

``tsugi1-`` and 71 characters of base64url: one byte for the role, the hub's public key, the seed of the pair to show
it, and a checksum. Keys are made anew for every run, so a token of another run opens nothing here.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re

from zmq.utils import z85

from tsugi_kpool.errors import ConfigError, SidebandError

from .keys import SEED_BYTES, Role, RunKeys, pair

PREFIX = "tsugi1-"
"""Names the format; another format will have another number."""
_ROLES = {1: Role.MEMBER, 2: Role.OBSERVER}
_PUBLIC_BYTES = 32
_CHECK_BYTES = 4
_ADDRESS = re.compile(r"tcp://[A-Za-z0-9._-]+:\d{1,5}")


def write(keys: RunKeys, role: Role) -> str:
    """Return the token of a role.

    Raises:
        SidebandError: these keys cannot make one; those of a hub can. Of the owner's there is none.
    """
    seed = {Role.MEMBER: keys.member_seed, Role.OBSERVER: keys.observer_seed}.get(role, "")
    if role is Role.OWNER:
        raise SidebandError("there is no owner's token: the key that stops a run stays in its key file")
    if not seed:
        raise SidebandError(f"these keys make no {role} token; the hub's own keys do")
    byte = next(number for number, each in _ROLES.items() if each is role)
    body = bytes([byte]) + z85.decode(keys.hub_public.encode()) + bytes.fromhex(seed)
    return PREFIX + base64.urlsafe_b64encode(body + _check(body)).decode().rstrip("=")


def read(text: str, address: str) -> tuple[RunKeys, Role]:
    """Return the keys in a token, and their role. Line breaks and spaces from pasting do not matter.

    Args:
        text: The token.
        address: The hub's, tcp://host:port.

    Raises:
        ConfigError: it is no token, one of another version, or mistyped; or the address is none.
    """
    check_address(address)
    body = _body("".join(text.split()))
    hub = z85.encode(body[1 : 1 + _PUBLIC_BYTES]).decode()
    seed = body[1 + _PUBLIC_BYTES :].hex()
    role = _ROLES.get(body[0])
    if role is None:
        raise ConfigError([f"token: role {body[0]} is unknown to this version of Tsugi"])
    seeds = {"member_seed" if role is Role.MEMBER else "observer_seed": seed}
    return RunKeys(hub, "", *pair(seed), address, **seeds), role


def check_address(address: str) -> None:
    """Raise ConfigError unless this is tcp://host:port."""
    if not _ADDRESS.fullmatch(address):
        raise ConfigError([f"{address}: expected the hub's address, such as tcp://host:51820"])


def _body(text: str) -> bytes:
    """Return the bytes before the checksum. The text itself is a secret and appears in no error."""
    if not text.startswith(PREFIX):
        known = re.match(r"tsugi\d+-", text)
        raise ConfigError([f"token: {known[0] if known else 'this'} is not a token of this version ({PREFIX}...)"])
    code = text.removeprefix(PREFIX)
    try:
        raw = base64.b64decode(code + "=" * (-len(code) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError) as error:
        raise ConfigError(["token: mistyped or cut: it has characters or a length that no token has"]) from error
    body, check = raw[:-_CHECK_BYTES], raw[-_CHECK_BYTES:]
    if len(body) != 1 + _PUBLIC_BYTES + SEED_BYTES or check != _check(body):
        raise ConfigError(["token: mistyped or cut: its checksum does not match"])
    return body


def _check(body: bytes) -> bytes:
    return hashlib.sha256(PREFIX.encode() + body).digest()[:_CHECK_BYTES]
