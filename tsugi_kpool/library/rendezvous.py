"""How the replicas of a loop that the user started find each other: the key file, the hub's address, our own.

Replica 0 writes the run's keys to a file that only its owner can read; the others wait until a hub answers to them. A
file that an earlier run left behind does no harm, because nobody answers to its keys.
"""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from tsugi_kpool.errors import LaunchError, MachineError, SidebandError
from tsugi_kpool.sideband import keys as key_files
from tsugi_kpool.sideband.addresses import WILDCARDS, joined, number_of, split
from tsugi_kpool.sideband.keys import RunKeys
from tsugi_kpool.sideband.observer import ask_status
from tsugi_kpool.world import World

ASK_S = 1.0
"""How long a hub may take to answer whether it is there."""
PAUSE_S = 0.1


def bindable(address: str) -> tuple[str, int]:
    """Where the hub listens: ZeroMQ wants numbers for a name.

    Raises:
        MachineError: there is no such machine.
    """
    host, port = split(address)
    try:
        return (host if host in WILDCARDS else number_of(host)), port
    except OSError as error:
        raise MachineError(f"sideband_addr names an unknown machine, {host}: {error}") from error


def hub_host(world: World, address: str) -> str:
    """The machine of the hub, as this one can reach it."""
    host = split(address)[0]
    if host not in WILDCARDS:
        return host
    return "127.0.0.1" if world.one_machine else world.master


def key_file(world: World, before: int = 0) -> Path:
    """Where the replicas of one torchrun job on one machine meet, unless the user names a file.

    Args:
        world: Which job.
        before: How many pools this process has joined before: a program may train several, one after the other or
            side by side, in the same order in all of its processes.

    Raises:
        MachineError: the folder is not ours alone.
    """
    folder = Path(os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir()) / f"tsugi-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
    except OSError as error:
        raise MachineError(f"cannot make {folder} for the run's keys: {error.strerror}") from error
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise MachineError(f"{folder} must be a folder that only you can enter, for the run's keys")
    return folder / f"{hashlib.sha256(world.run.encode()).hexdigest()[:16]}-{before}.keys"


def own_keys(path: Path, reuse: bool) -> RunKeys:
    """The hub's keys: from a file that was copied to all machines beforehand, else new ones."""
    return key_files.load(path) if reuse and path.exists() else RunKeys.generate()


def publish(keys: RunKeys, host: str, path: Path) -> RunKeys:
    """Write the keys with the address that others connect to; returns them so.

    Raises:
        MachineError: the file cannot be written.
    """
    port = split(keys.address or "")[1]
    keys = replace(keys, address=joined(host, port))
    try:
        key_files.save(keys, path)
    except OSError as error:
        raise MachineError(f"cannot write the run's keys to {path}: {error.strerror}") from error
    return keys


def find_hub(path: Path, host: str, address: str, timeout_s: float) -> RunKeys:
    """Wait until the file is there and a hub answers to its keys.

    Args:
        path: The key file.
        host: The hub's machine as this one can reach it.
        address: The configured address; its port 0 means the one in the file.
        timeout_s: Give up then.

    Raises:
        LaunchError: none does in time.
        SidebandError: the file cannot be used, for instance because others can read it.
    """
    deadline_s = time.monotonic() + timeout_s
    reason = "there is no such file"
    while time.monotonic() < deadline_s:
        if path.exists():
            keys = key_files.load(path)
            try:
                keys = _reached(keys, host, split(address)[1])
                ask_status(keys, ASK_S)
                return keys
            except SidebandError as error:
                reason = str(error)
        time.sleep(PAUSE_S)
    raise LaunchError(f"no hub was found with the keys at {path} within {timeout_s:g} s: {reason}")


def _reached(keys: RunKeys, host: str, port: int) -> RunKeys:
    port = port or split(keys.address or "tcp://none:0")[1]
    if not port:
        raise SidebandError("the keys do not say yet where the hub listens")
    return replace(keys, address=joined(host, port))
