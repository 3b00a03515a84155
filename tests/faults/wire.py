"""A wire between two network namespaces that can be cut, cut one way, delayed, made lossy or slow.

Each end is a TUN device; a thread carries the packets from one to the other. It needs no module of the kernel but TUN
(`tc netem` is missing in many), and nothing outside the two namespaces is reached.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import heapq
import os
import random
import select
import struct
import subprocess
import threading
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

TUNSETIFF, IFF_TUN_NO_PI = 0x400454CA, 0x1001
CLONE_NEWNET = 0x40000000
DEVICE = b"wire"
HERE, THERE = "10.213.7.1", "10.213.7.2"
PACKET_BYTES = 65_536
POLL_MS = 50


class NoWire(Exception):
    """This user or kernel can make none; the text says why."""


@dataclass
class Weather:
    """What happens to packets, by the end that sends them: 0 is here, 1 is there."""

    cut: frozenset[int] = frozenset()
    delay_s: float = 0.0
    loss: float = 0.0
    bytes_s: float = float("inf")


class Wire:
    """Two namespaces and the wire between them. `lay`, `tear`; `weather` may be changed at any time."""

    def __init__(self) -> None:
        self.here, self.there = (f"tsugi-{os.getpid()}-{end}" for end in ("a", "b"))
        self.weather = Weather()
        self.counts: Counter[str] = Counter()
        """Packets: `carried`, `cut`, `lost`."""
        self._draw = random.Random(0)
        self._ends: list[int] = []
        self._stopping = threading.Event()
        self._ready = threading.Event()
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    def lay(self) -> None:
        """Make namespaces, devices and the thread.

        Raises:
            NoWire: rights or the kernel's TUN are missing.
        """
        try:
            for name in (self.here, self.there):
                _ip("netns", "add", name)
                _ip("-n", name, "link", "set", "lo", "up")
        except (OSError, subprocess.CalledProcessError) as error:
            raise NoWire(f"no network namespaces: {getattr(error, 'stderr', None) or error}") from error
        self._thread.start()
        self._ready.wait(10)
        if self._error is not None:
            raise NoWire(f"no TUN device: {self._error}") from self._error
        for name, address in ((self.here, HERE), (self.there, THERE)):
            _ip("-n", name, "addr", "add", f"{address}/24", "dev", DEVICE.decode())
            _ip("-n", name, "link", "set", DEVICE.decode(), "up")

    def tear(self) -> None:
        """Take all of it away."""
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join(10)
        for name in (self.here, self.there):
            with contextlib.suppress(OSError, subprocess.CalledProcessError):
                _ip("netns", "del", name)

    def heal(self) -> None:
        self.weather = Weather()

    def inside(self, name: str) -> tuple[str, ...]:
        """What a command is run in a namespace by."""
        return ("ip", "netns", "exec", name)

    # --- the wire's thread --------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._ends = [_tun(self.here), _tun(self.there)]
        except OSError as error:
            self._error = error
            return
        finally:
            self._ready.set()
        try:
            self._carry()
        finally:
            for end in self._ends:
                os.close(end)

    def _carry(self) -> None:
        poll = select.poll()
        for end in self._ends:
            poll.register(end, select.POLLIN)
        under_way: list[tuple[float, int, int, bytes]] = []
        free_s, number = [0.0, 0.0], 0
        while not self._stopping.is_set():
            wait_ms = POLL_MS if not under_way else max(0.0, (under_way[0][0] - time.monotonic()) * 1000)
            for fd, _ in poll.poll(min(POLL_MS, wait_ms)):
                sender, now_s = self._ends.index(fd), time.monotonic()
                packet = os.read(fd, PACKET_BYTES)
                if self._takes(sender):
                    free_s[sender] = max(now_s, free_s[sender]) + len(packet) / self.weather.bytes_s
                    number += 1
                    heapq.heappush(under_way, (free_s[sender] + self.weather.delay_s, number, 1 - sender, packet))
            while under_way and under_way[0][0] <= time.monotonic():
                _, _, receiver, packet = heapq.heappop(under_way)
                with contextlib.suppress(OSError):  # the device is not up yet, or no more
                    os.write(self._ends[receiver], packet)

    def _takes(self, sender: int) -> bool:
        weather = self.weather
        fate = "cut" if sender in weather.cut else "lost" if self._draw.random() < weather.loss else "carried"
        self.counts[fate] += 1
        return fate == "carried"


def _tun(namespace: str) -> int:
    """A TUN device in that namespace. The calling thread stays there."""
    libc = ctypes.CDLL(None, use_errno=True)
    with Path(f"/run/netns/{namespace}").open("rb") as there:
        if libc.setns(there.fileno(), CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "setns")
    end = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(end, TUNSETIFF, struct.pack("16sH22x", DEVICE, IFF_TUN_NO_PI))
    return end


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)
