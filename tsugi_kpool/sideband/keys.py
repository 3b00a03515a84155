"""CURVE keys of a run: made by the launcher, read by replicas and observers, never sent anywhere.

A run has two key pairs: the hub's, and one that admits to this run. They stand in one file that only its owner
can read. Who does not hold the second is not let in; who does not know the first's public half gets no answer.
"""

from __future__ import annotations

import json
import os
import stat
from dataclasses import asdict, dataclass
from pathlib import Path

import zmq

from tsugi_kpool.errors import SidebandError


@dataclass(frozen=True)
class RunKeys:
    """Z85 texts of 40 characters each, and where the hub listens (None before it does)."""

    hub_public: str
    hub_secret: str
    member_public: str
    member_secret: str
    address: str | None = None

    @staticmethod
    def generate() -> RunKeys:
        """Draw two fresh pairs."""
        hub_public, hub_secret = zmq.curve_keypair()
        member_public, member_secret = zmq.curve_keypair()
        return RunKeys(hub_public.decode(), hub_secret.decode(), member_public.decode(), member_secret.decode())


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
        if path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise SidebandError(f"{path} can be read by others; a run's keys must be mode 0600")
        return RunKeys(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise SidebandError(f"no usable sideband keys at {path}: {error}") from error
