"""The TCP sockets of one group: shutting them down is the only way to wake a thread that waits in its collective.

Gloo's own abort returns at once and leaves the wait to its timeout (measured with torch 2.13).
"""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

Known = dict[int, int]
"""File descriptor to inode: a number that was given back may have become something else."""


class Sockets:
    """Made before the group is; `keep_new` when it has formed."""

    def __init__(self) -> None:
        self._before = _open_sockets()
        self._ours: Known = {}

    def keep_new(self) -> None:
        """Those that have come since are the group's; another thread's may be among them, and will reconnect."""
        self._ours = {fd: inode for fd, inode in _open_sockets().items() if self._before.get(fd) != inode}

    @property
    def severed(self) -> bool:
        """Whether one of them is there no more: gloo closes its end when it finds that a peer has gone."""
        return any(_inode(fd) != inode for fd, inode in self._ours.items())

    def shut_down(self) -> None:
        """End both directions of all that are still connected. Any thread."""
        now = _open_sockets()
        for fd, inode in self._ours.items():
            if now.get(fd) == inode:
                _shut_down(fd)


def _open_sockets() -> Known:
    """All of this process; nothing where there is no /proc, and then only timeouts end a wait."""
    found: Known = {}
    try:
        names = [entry.name for entry in Path("/proc/self/fd").iterdir()]
    except OSError:
        return found
    for name in names:
        try:
            status = os.fstat(int(name))
        except OSError:
            continue
        if stat.S_ISSOCK(status.st_mode):
            found[int(name)] = status.st_ino
    return found


def _inode(fd: int) -> int | None:
    try:
        return os.fstat(fd).st_ino
    except OSError:
        return None


def _shut_down(fd: int) -> None:
    try:
        with socket.socket(fileno=os.dup(fd)) as copy:
            if copy.family in (socket.AF_INET, socket.AF_INET6) and copy.type == socket.SOCK_STREAM:
                copy.getpeername()  # one that listens has no peer, and is left alone
                copy.shutdown(socket.SHUT_RDWR)
    except OSError:
        return
