"""CURVE keys of a run: made by the launcher, read by replicas and observers, never sent anywhere.

A run has four key pairs: the hub's; the members', with which one trains; the observers', with which one only asks for
the status; and the owner's, with which one stops the run. All are in one file that only its owner can read. A
connection without one of the last three is refused; without the hub's public key there is no answer at all.
`sideband.token` carries the members' or the observers' pair to another machine; the owner's stays where it is.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import stat
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from pathlib import Path

import msgspec
import zmq
from zmq.utils import z85

from tsugi_kpool.errors import MachineError, SidebandError
from tsugi_kpool.foreign import open_plain

from .addresses import is_hub

SEED_BYTES = 16
"""Random bytes that a pair is made from: as strong as the curve itself, and a token stays short."""


MOST_BYTES = 1 << 16
"""Upper limit for a file of keys, which has 500 bytes."""
_KEY = re.compile(r"[0-9a-zA-Z.:+=^!/*?&<>()\[\]{}@%$#-]{40}")  # Z85
_SEED = re.compile(rf"[0-9a-f]{{{2 * SEED_BYTES}}}")
_PEM = re.compile(r"-----BEGIN CERTIFICATE-----\n[A-Za-z0-9+/=\n]{1,4096}-----END CERTIFICATE-----\n")


class Role(StrEnum):
    """What the holder of a key may do."""

    MEMBER = "member"
    """Train, and ask for the status."""
    OBSERVER = "observer"
    """Ask for the status."""
    OWNER = "owner"
    """Ask for the status, and stop the run."""


@dataclass(frozen=True)
class RunKeys:
    """Keys as Z85 texts of 40 characters each, and the hub's address (None before it listens)."""

    hub_public: str
    hub_secret: str
    """Empty everywhere but at the hub."""
    member_public: str
    """The pair shown to the hub; on another machine it may be the observers'."""
    member_secret: str
    address: str | None = None
    member_seed: str = ""
    """Seed in a member's token, in hexadecimal; empty when these keys can make no token."""
    observer_seed: str = ""
    owner_seed: str = ""
    """Seed of the pair that stops the run, which is in no token. Empty in older files, and on other machines."""
    exchange: str = ""
    """Certificate of the run's exchange (PEM), which listens one port above the hub. Empty where there is none."""

    @staticmethod
    def generate() -> RunKeys:
        """Draw fresh pairs.

        Raises:
            MachineError: this ZeroMQ was built without CURVE.
        """
        if not zmq.has("curve"):
            raise MachineError("this ZeroMQ cannot encrypt: install pyzmq's wheel, or see sideband.insecure")
        hub_public, hub_secret = zmq.curve_keypair()
        member, observer, owner = (secrets.token_hex(SEED_BYTES) for _ in range(3))
        return RunKeys(hub_public.decode(), hub_secret.decode(), *pair(member), None, member, observer, owner)

    @staticmethod
    def none() -> RunKeys:
        """Return no keys: everybody is let in, and nothing is encrypted. Only for those who insist."""
        return RunKeys("", "", "", "")

    @property
    def curve(self) -> bool:
        """Whether there are any keys."""
        return bool(self.hub_public)

    def roles(self) -> dict[str, Role]:
        """Return the hub's list of admitted keys: public key -> role."""
        found = {self.member_public: Role.MEMBER}
        if self.observer_seed:
            found[pair(self.observer_seed)[0]] = Role.OBSERVER
        if self.owner_seed:
            found[pair(self.owner_seed)[0]] = Role.OWNER
        return found

    def owned(self) -> RunKeys:
        """Return a hub's own keys with an owner's among them: files of earlier versions have none."""
        if not self.curve or self.owner_seed:
            return self
        return replace(self, owner_seed=secrets.token_hex(SEED_BYTES))

    def as_owner(self) -> RunKeys | None:
        """Return these keys as the owner shows them to the hub; None when they hold no owner's pair."""
        if not self.curve:
            return self  # where nobody asks for keys, anybody is the owner
        if not self.owner_seed:
            return None
        public, secret = pair(self.owner_seed)
        return replace(self, member_public=public, member_secret=secret)


def pair(seed: str) -> tuple[str, str]:
    """Return the (public, secret) pair of a seed of SEED_BYTES in hexadecimal."""
    secret = z85.encode(hashlib.sha256(b"tsugi sideband key" + bytes.fromhex(seed)).digest())
    return zmq.curve_public(secret).decode(), secret.decode()


def seeded(secret: bytes) -> RunKeys:
    """Return all keys of a run as 32 secret bytes give them: who has these needs nothing else to be its hub, or a
    member.

    Raises:
        MachineError: this ZeroMQ was built without CURVE.
    """
    if not zmq.has("curve"):
        raise MachineError("this ZeroMQ cannot encrypt: install pyzmq's wheel, or see sideband.insecure")

    def seed(name: bytes) -> str:
        return hashlib.sha256(b"tsugi " + name + b"\0" + secret).digest()[:SEED_BYTES].hex()

    hub_public, hub_secret = pair(seed(b"hub"))
    member, observer, owner = (seed(name) for name in (b"member", b"observer", b"owner"))
    return RunKeys(hub_public, hub_secret, *pair(member), None, member, observer, owner)


def save(keys: RunKeys, path: Path) -> None:
    """Write the keys to a new file of mode 0600, whole or not at all."""
    scratch = path.with_suffix(".tmp")
    scratch.unlink(missing_ok=True)
    handle = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        json.dump(asdict(keys), file)
    scratch.replace(path)


def load(path: Path) -> RunKeys:
    """Read the keys of a run.

    Raises:
        SidebandError: the file is missing, malformed, or readable by others.
    """
    try:
        with open_plain(path) as file:
            if os.fstat(file.fileno()).st_mode & (stat.S_IRWXG | stat.S_IRWXO):
                raise SidebandError(f"{path} can be read by others; a run's keys must be mode 0600")
            keys = msgspec.convert(json.loads(file.read(MOST_BYTES)), RunKeys)
    except OSError as error:
        raise SidebandError(f"no usable sideband keys at {path}: {error.strerror}") from error
    except (ValueError, msgspec.ValidationError, RecursionError) as error:
        raise SidebandError(f"no usable sideband keys at {path}: {error}") from error
    if wrong := _wrong(keys):
        raise SidebandError(f"no usable sideband keys at {path}: {wrong}")
    return keys


def is_certificate(text: str) -> bool:
    """Return whether this text has the form of a certificate of ours. Whoever it does not belong to cannot use it."""
    return _PEM.fullmatch(text) is not None


def _wrong(keys: RunKeys) -> str | None:
    """Return which of these texts is no valid key, seed or address; None when all are."""
    for name in ("hub_public", "hub_secret", "member_public", "member_secret"):
        if (text := getattr(keys, name)) and not _KEY.fullmatch(text):
            return f"{name} is no key of 40 characters"
    for name in ("member_seed", "observer_seed"):
        if (text := getattr(keys, name)) and not _SEED.fullmatch(text):
            return f"{name} is no seed of {SEED_BYTES} bytes"
    if keys.exchange and not is_certificate(keys.exchange):
        return "exchange is no certificate"
    if keys.address is not None and not is_hub(keys.address):
        return "address is not tcp://HOST:PORT"
    return None
