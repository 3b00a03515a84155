"""The TCP sockets of one group: to shut them down is the only way to wake a thread that waits in its collective.

Gloo's own abort returns at once and leaves the wait to its timeout (measured with torch 2.13).
"""

from __future__ import annotations

import os
import socket
import stat
import struct
from collections.abc import Iterator
from contextlib import suppress

from tsugi_kpool.core.replica.acquaintance import Connections, name
from tsugi_kpool.system import own_descriptors

Known = dict[int, int]
"""File descriptor -> inode: the number alone may mean another file later."""
End = tuple[str, int]
"""Address and port."""
KEEP_IDLE = ("TCP_KEEPIDLE", "TCP_KEEPALIVE")
"""What a socket's seconds before the first keep-alive are called: on Linux and Windows, and on macOS."""
MARK_S = 4243
"""`KEEP_IDLE` of sockets that are no group's: what a marked socket accepts has it, too, from its first moment on,
and nobody else chooses this value. Keep-alive itself stays off."""
TCP_INFO_BYTES, RECEIVED_AT = 192, 128
"""Part of Linux's struct tcp_info that is read, and the offset of tcpi_bytes_received in it."""


class Sockets:
    """The sockets that appear while a group forms. Made before the group; `keep_new` when it has formed."""

    def __init__(self) -> None:
        self._before = _open_sockets()
        self._ours: Known = {}

    def keep_new(self) -> None:
        """Take the TCP sockets opened since `__init__` for the group's, without those that are marked (`mark`) and
        those that are not connected yet. Another thread's may be among them; it will reconnect."""
        new = {fd: inode for fd, inode in _open_sockets().items() if self._before.get(fd) != inode}
        self._ours = {fd: inode for fd, inode in new.items() if _may_be_a_groups(fd)}

    @property
    def severed(self) -> bool:
        """Whether one of them has closed: gloo closes its end when a peer has gone."""
        return any(_inode(fd) != inode for fd, inode in self._ours.items())

    def connections(self) -> Connections | None:
        """Return the group's connections by name; None where this system does not show them."""
        if not self._ours:
            return None
        open_now = set(_open_sockets())
        ports, ends = _seen(open_now & set(self._ours))
        silent = _hushed(open_now & set(self._ours), ports)
        # What came in at another port of this process has not gone out from here either.
        all_ports, _ = _seen(open_now)
        return Connections(
            accepted=tuple(name(*each) for each in ends if each[0][1] in ports and each not in silent),
            made=tuple(name(*each) for each in ends if each[0][1] not in all_ports),
        )

    def shut_down(self) -> None:
        """Shut down all that are still connected, in both directions. Any thread."""
        now = _open_sockets()
        for fd, inode in self._ours.items():
            if now.get(fd) == inode:
                _shut_down(fd)


def mark(one: socket.socket) -> None:
    """Mark a TCP socket that may be open while a group forms, and is not the group's, and with it what it accepts.

    Args:
        one: Neither listening nor connected yet.
    """
    if _MARK is not None:
        with suppress(OSError):
            one.setsockopt(socket.IPPROTO_TCP, _MARK, MARK_S)


def option_of(names: object) -> int | None:
    """Return the option that bears the mark, by what the module `socket` names; macOS has another name for it."""
    return next((found for name in KEEP_IDLE if (found := getattr(names, name, None)) is not None), None)


_MARK = option_of(socket)


def _may_be_a_groups(fd: int) -> bool:
    for copy in _copies(fd):
        with copy:
            try:
                marked = _MARK is not None and copy.getsockopt(socket.IPPROTO_TCP, _MARK) == MARK_S
            except OSError:
                marked = False
            return not marked and (_listens(copy) or _ends(copy) is not None)
    return False


def _open_sockets() -> Known:
    """Return all sockets of this process; none where the system does not show them (then only timeouts end a
    wait)."""
    found: Known = {}
    for number in _descriptors():
        try:
            status = os.fstat(number)
        except OSError:
            continue
        if stat.S_ISSOCK(status.st_mode):
            found[number] = status.st_ino
    return found


def _descriptors() -> list[int]:
    return own_descriptors() or []


def _seen(descriptors: set[int]) -> tuple[set[int], list[tuple[End, End]]]:
    """Return the ports that are listened on, and both ends of every connection."""
    ports, ends = set(), []
    for copy in (copy for fd in descriptors for copy in _copies(fd)):
        with copy:
            if _listens(copy):
                ports.add(copy.getsockname()[1])
            elif (found := _ends(copy)) is not None:
                ends.append(found)
    return ports, ends


def _hushed(descriptors: set[int], ports: set[int]) -> set[tuple[End, End]]:
    """Shut down incoming connections at these ports that have sent nothing, and return them: they are no member's.

    A member sends eight bytes at once. A connection is shut down first and checked again, because it might speak in
    between.
    """
    ended: set[tuple[End, End]] = set()
    for copy in (copy for fd in descriptors for copy in _copies(fd)):
        with copy:
            found = None if _listens(copy) else _ends(copy)
            if found is None or found[0][1] not in ports or _received_bytes(copy) != 0:
                continue
            with suppress(OSError):
                copy.shutdown(socket.SHUT_RDWR)
            if _received_bytes(copy) == 0:
                ended.add(found)
    return ended


def _received_bytes(one: socket.socket) -> int | None:
    """Return the bytes received over a connection; None where the system does not say."""
    try:
        facts = one.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, TCP_INFO_BYTES)
        return int(struct.unpack_from("Q", facts, RECEIVED_AT)[0])
    except (OSError, AttributeError, struct.error):
        return None


def _copies(fd: int) -> Iterator[socket.socket]:
    """Yield a duplicate of a TCP socket, to ask it; nothing when it is of another kind, or has gone."""
    try:
        copy = socket.socket(fileno=os.dup(fd))
    except OSError:
        return
    if copy.family in (socket.AF_INET, socket.AF_INET6) and copy.type == socket.SOCK_STREAM:
        yield copy
    else:
        copy.close()


def _listens(one: socket.socket) -> bool:
    return bool(one.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))


def _ends(one: socket.socket) -> tuple[End, End] | None:
    """Return (address, port) of both ends; None without a peer."""
    try:
        near, far = one.getsockname(), one.getpeername()
    except OSError:
        return None
    return (near[0], near[1]), (far[0], far[1])


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
