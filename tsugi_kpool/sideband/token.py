"""Tokens: one line to paste that holds all another machine needs to talk to a hub.

``tsugi1-`` and 71 characters of base64url: one byte for the role, the hub's public key, the seed of the pair to show
it, and a checksum. ``tsugi2-`` has the hub's address, too, or several that are tried in turn. Keys are made anew for
every run, so a token of another run opens nothing here.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Sequence

from zmq.utils import z85

from tsugi_kpool.errors import ConfigError, SidebandError

from .addresses import TCP, is_hub
from .keys import SEED_BYTES, Role, RunKeys, pair

PREFIX = "tsugi1-"
"""Names the format; another format has another number."""
ADDRESSED = "tsugi2-"
"""Of a token that has the hub's host:port between the seed and the checksum; several with commas between them."""
_ROLES = {1: Role.MEMBER, 2: Role.OBSERVER}
_PUBLIC_BYTES = 32
_CHECK_BYTES = 4
_FIXED_BYTES = 1 + _PUBLIC_BYTES + SEED_BYTES
_MOST_ADDRESS = 255 + 6
MOST_ADDRESSES = 4
"""A token stays a line that can be pasted."""


def write(keys: RunKeys, role: Role, addressed: bool = False, others: Sequence[str] = ()) -> str:
    """Return the token of a role.

    Args:
        keys: The hub's.
        role: What its holder may do.
        addressed: With the hub's address in it: then it is all that `tsugi join` needs.
        others: Further addresses of the hub, as tcp://host:port, for machines that do not reach the first.

    Raises:
        SidebandError: these keys cannot make one; those of a hub that listens can. Of the owner's there is none.
    """
    seed = {Role.MEMBER: keys.member_seed, Role.OBSERVER: keys.observer_seed}.get(role, "")
    if role is Role.OWNER:
        raise SidebandError("there is no owner's token: the key that stops a run stays in its key file")
    if not seed:
        raise SidebandError(f"these keys make no {role} token; the hub's own keys do")
    byte = next(number for number, each in _ROLES.items() if each is role)
    body = bytes([byte]) + z85.decode(keys.hub_public.encode()) + bytes.fromhex(seed)
    if addressed and keys.address is None:
        raise SidebandError("these keys do not say yet where the hub listens")
    prefix = ADDRESSED if addressed else PREFIX
    if addressed:
        listed = dict.fromkeys([keys.address or "", *others])
        body += ",".join(each.removeprefix(TCP) for each in listed).encode()
    return prefix + base64.urlsafe_b64encode(body + _check(prefix, body)).decode().rstrip("=")


def is_token(text: str) -> bool:
    """Return whether this is a token, or was meant as one, and no address."""
    return re.match(r"tsugi\d+-", text.strip()) is not None


def read(text: str, address: str | None = None) -> tuple[RunKeys, Role]:
    """Return the keys in a token, and their role; of several addresses in it the first.

    Args and errors are those of `read_all`.
    """
    keys, role, _ = read_all(text, address)
    return keys, role


def read_all(text: str, address: str | None = None) -> tuple[RunKeys, Role, tuple[str, ...]]:
    """Return the keys in a token, their role, and the hub's addresses. Line breaks and spaces from pasting do not
    matter.

    Args:
        text: The token.
        address: The hub's, tcp://host:port; None: it is in the token.

    Raises:
        ConfigError: it is no token, one of another version, or mistyped; or the address is none, or missing.
    """
    if address is not None:
        check_address(address)
    body, named = _parts("".join(text.split()))
    found = (address,) if address is not None else named
    if not found:
        raise ConfigError([f"token: {PREFIX}... does not say where the hub is: tsugi join tcp://HOST:PORT"])
    hub = z85.encode(body[1 : 1 + _PUBLIC_BYTES]).decode()
    seed = body[1 + _PUBLIC_BYTES :].hex()
    role = _ROLES.get(body[0])
    if role is None:
        raise ConfigError([f"token: role {body[0]} is unknown to this version of Tsugi"])
    seeds = {"member_seed" if role is Role.MEMBER else "observer_seed": seed}
    return RunKeys(hub, "", *pair(seed), found[0], **seeds), role, found


def check_address(address: str) -> None:
    """Raise ConfigError unless this is tcp://host:port."""
    if not is_hub(address):
        example = "tcp://host:51820, tcp://10.0.0.5:51820 or tcp://[fd00::5]:51820"
        raise ConfigError([f"{address}: expected the hub's address, such as {example}"])


def _parts(text: str) -> tuple[bytes, tuple[str, ...]]:
    """Return role, key and seed, and the addresses, if any. The text is a secret and appears in no error."""
    prefix = next((each for each in (PREFIX, ADDRESSED) if text.startswith(each)), None)
    if prefix is None:
        known = re.match(r"tsugi\d+-", text)
        raise ConfigError([f"token: {known[0] if known else 'this'} is not a token of this version ({PREFIX}...)"])
    body = _body(text.removeprefix(prefix), prefix)
    if prefix == PREFIX:
        return body, ()
    addresses = [TCP + each for each in body[_FIXED_BYTES:].decode("utf-8", "replace").split(",")]
    for address in addresses:
        check_address(address)
    return body[:_FIXED_BYTES], tuple(addresses[:MOST_ADDRESSES])


def _body(code: str, prefix: str) -> bytes:
    """Return the bytes before the checksum."""
    try:
        raw = base64.b64decode(code + "=" * (-len(code) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError) as error:
        raise ConfigError(["token: mistyped or cut: it has characters or a length that no token has"]) from error
    body, check = raw[:-_CHECK_BYTES], raw[-_CHECK_BYTES:]
    most = _FIXED_BYTES + (MOST_ADDRESSES * _MOST_ADDRESS if prefix == ADDRESSED else 0)
    if not _FIXED_BYTES <= len(body) <= most or check != _check(prefix, body):
        raise ConfigError(["token: mistyped or cut: its checksum does not match"])
    return body


def _check(prefix: str, body: bytes) -> bytes:
    return hashlib.sha256(prefix.encode() + body).digest()[:_CHECK_BYTES]
