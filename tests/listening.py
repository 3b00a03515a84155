"""At which ports and sockets the processes of a run listen: looked at again and again while they live."""

from __future__ import annotations

import ipaddress
import os
import socket
import struct
import sys
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

PROC = Path("/proc")
LOOK_S = 0.2
LISTENS = "0A"
"""State of a TCP socket in /proc/net/tcp."""
UNIX_LISTENS = 0x10000
"""Flag of a unix socket in /proc/net/unix."""
AGENT = "torch.distributed.run"


@dataclass(frozen=True)
class Listener:
    """A socket that somebody can connect to."""

    command: str
    """Of the process, its words separated by spaces."""
    kind: str
    """tcp or unix."""
    address: str
    """Of this machine, or the path."""
    port: int = 0

    @property
    def allowed(self) -> bool:
        """Whether it stands on the list of those that Tsugi may have (docs/security.md).

        An agent has none. Workers have gloo's, on loopback or where a test has put their machine. Launchers and hubs
        have the sideband's, which asks for a key, and figures on loopback. Unix sockets lie in their user's folders.
        """
        if self.kind == "unix":
            return self.address.startswith("/") and private(Path(self.address).parent)
        if AGENT in self.command:
            return False
        if ipaddress.ip_address(self.address).is_loopback:
            return True
        # sideband.bind, topology.address: a test has asked for it; or the probe of a benchmark's own namespaces.
        words = self.command.split()
        return (
            f"={self.address}" in self.command
            or ("tsugi_cli.bench.links.probe" in words and self.address in words)
            or any(self._stands_in(each) for each in _read_by(words))
        )

    def _stands_in(self, file: Path) -> bool:
        """Whether a test's program names it as its sideband's, or a run's configuration as its machine's.

        On a trusted network replicas listen at their machine's address, whichever that is, but never at all of them.
        """
        text = file.read_text() if file.exists() else ""
        trusted = "\n  trust_network: true\n" in text and not ipaddress.ip_address(self.address).is_unspecified
        bound = f"\n  bind: {self.address}\n" in text
        return (
            bound
            or trusted
            or f'"tcp://{self.address}:{self.port}"' in text
            or f"\n  address: {self.address}\n" in text
        )


def _read_by(words: list[str]) -> list[Path]:
    """Programs in a command, and the configuration of the run that it is part of."""
    runs = [Path(word) / "config.yaml" for before, word in pairwise(words) if before in ("--run-dir", "--run")]
    return [*runs, *(Path(word) for word in words if word.endswith(".py"))]


def private(folder: Path) -> bool:
    """Whether only its owner can enter it, or one above it; true when it has gone."""
    return any(each.exists() and not each.stat().st_mode & 0o077 for each in (folder, *folder.parents)) or not (
        folder.exists()
    )


class Watch:
    """A context manager: all that descendants of this process have listened at while it lasts is in `found`."""

    def __init__(self) -> None:
        self.found: set[Listener] = set()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="listening", daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._end.wait(LOOK_S):
            self.look()

    def look(self) -> None:
        """Once, now."""
        for pid in descendants(os.getpid()):
            with suppress(OSError, ValueError):
                self.found.update(listeners(pid))


def descendants(root: int) -> list[int]:
    """Children, and theirs."""
    children = defaultdict(list)
    for entry in PROC.iterdir():
        if entry.name.isdigit():
            with suppress(OSError, ValueError, IndexError):
                children[int((entry / "stat").read_text().rpartition(")")[2].split()[1])].append(int(entry.name))
    found, waiting = [], [root]
    while waiting:
        found += (next_ones := children[waiting.pop()])
        waiting += next_ones
    return found


def listeners(pid: int) -> Iterator[Listener]:
    """What a process listens at."""
    folder = PROC / str(pid)
    inodes = set()
    for entry in (folder / "fd").iterdir():
        with suppress(OSError):
            target = str(entry.readlink())
            if target.startswith("socket:["):
                inodes.add(target[8:-1])
    if not inodes:
        return
    command = (folder / "cmdline").read_bytes().rstrip(b"\0").replace(b"\0", b" ").decode(errors="replace")
    if not command:  # it ends: its memory has gone, and with it who it was, its sockets go a moment later
        return
    for table, family in (("tcp", socket.AF_INET), ("tcp6", socket.AF_INET6)):
        for line in (folder / "net" / table).read_text().splitlines()[1:]:
            words = line.split()
            if words[3] == LISTENS and words[9] in inodes:
                host, _, port = words[1].partition(":")
                yield Listener(command, "tcp", _address(host, family), int(port, 16))
    for line in (folder / "net" / "unix").read_text().splitlines()[1:]:
        words = line.split()
        if int(words[3], 16) & UNIX_LISTENS and words[6] in inodes:
            yield Listener(command, "unix", words[7] if len(words) > 7 else "")


def _address(text: str, family: int) -> str:
    """The kernel writes addresses as numbers of four bytes in its own order."""
    words = [int(text[at : at + 8], 16) for at in range(0, len(text), 8)]
    order = "<" if sys.byteorder == "little" else ">"
    return socket.inet_ntop(family, b"".join(struct.pack(f"{order}I", word) for word in words))
