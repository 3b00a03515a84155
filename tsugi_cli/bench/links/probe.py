"""Measures a link: `python -m tsugi_cli.bench.links.probe serve ADDRESS`, and `ask ADDRESS PORT MBIT_S` there."""

from __future__ import annotations

import json
import select
import socket
import struct
import sys
import time
from statistics import median

ROUND_TRIPS, TRIPS_S = 20, 3.0
"""Round trips to measure, or as many as fit into this time."""
DATAGRAMS, DATAGRAM, DATAGRAMS_S = 500, b"\0" * 200, 2.0
HEADERS = 42
"""Bytes of a datagram's headers on the wire."""
SECONDS = 2.0
"""Time in which bytes are sent."""
BLOCK = b"\0" * 16384
AGAIN, ENOUGH = b"a", b"e"


def serve(address: str) -> None:
    """Print a free port; then, for one caller: return single bytes, count datagrams, count bytes."""
    with socket.create_server((address, 0)) as server, socket.socket(type=socket.SOCK_DGRAM) as datagrams:
        datagrams.bind(server.getsockname())
        print(server.getsockname()[1], flush=True)  # noqa: T201
        with server.accept()[0] as caller:
            caller.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while caller.recv(1) == AGAIN:
                caller.sendall(AGAIN)
            caller.sendall(struct.pack("I", _datagrams(datagrams, caller)))
            count = len(caller.recv(1 << 16))
            began_s = time.monotonic()
            while data := caller.recv(1 << 16):
                count += len(data)
            seconds = time.monotonic() - began_s
            caller.sendall(json.dumps({"bytes": count, "seconds": seconds}).encode())


def ask(address: str, port: int, mbit_s: float) -> dict[str, float]:
    """Return the round trip of one byte, the share of lost datagrams, and the rate at which bytes arrive."""
    with socket.create_connection((address, port), timeout=30) as link:
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        trips: list[float] = []
        while len(trips) < ROUND_TRIPS and sum(trips) < TRIPS_S:
            began_s = time.monotonic()
            link.sendall(AGAIN)
            link.recv(1)
            trips.append(time.monotonic() - began_s)
        link.sendall(ENOUGH)
        lost = _lost(link, mbit_s)
        until_s = time.monotonic() + SECONDS
        while time.monotonic() < until_s:
            link.sendall(BLOCK)
        link.shutdown(socket.SHUT_WR)
        arrived = json.loads(link.recv(1024))
    return {
        "rtt_ms_measured": round(median(trips) * 1000, 3),
        "loss_measured": round(lost, 4),
        "mbit_s_measured": round(arrived["bytes"] * 8 / arrived["seconds"] / 1e6, 3),
    }


def _lost(link: socket.socket, mbit_s: float) -> float:
    """Send datagrams at a quarter of the link's rate, so that no queue fills; returns the share that was lost."""
    every_s = (len(DATAGRAM) + HEADERS) * 8 / (mbit_s * 1e6 / 4)
    count = max(1, min(DATAGRAMS, int(DATAGRAMS_S / every_s)))
    with socket.socket(type=socket.SOCK_DGRAM) as datagrams:
        datagrams.connect(link.getpeername())
        for _ in range(count):
            datagrams.send(DATAGRAM)
            time.sleep(every_s)
    link.sendall(ENOUGH)
    (arrived,) = struct.unpack("I", link.recv(4, socket.MSG_WAITALL))
    return 1 - int(arrived) / count


def _datagrams(datagrams: socket.socket, caller: socket.socket) -> int:
    """Return how many come before the caller's next byte, which nothing overtakes."""
    count, readable = 0, [datagrams]
    while caller not in readable or datagrams in readable:
        readable, _, _ = select.select([datagrams, caller], [], [])
        if datagrams in readable:
            count += bool(datagrams.recv(1 << 16))
    caller.recv(1)
    return count


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(sys.argv[2])
    else:
        print(json.dumps(ask(sys.argv[2], int(sys.argv[3]), float(sys.argv[4]))))  # noqa: T201
