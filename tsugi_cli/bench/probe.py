"""How a link is: `python -m tsugi_cli.bench.probe serve ADDRESS`, and `ask ADDRESS PORT` at its other end."""

from __future__ import annotations

import json
import socket
import sys
import time
from statistics import median

ROUND_TRIPS = 20
SECONDS = 2.0
"""Bytes are sent for so long."""
BLOCK = b"\0" * 16384


def serve(address: str) -> None:
    """Print a free port; return single bytes, then count what comes, for one caller."""
    with socket.create_server((address, 0)) as server:
        print(server.getsockname()[1], flush=True)  # noqa: T201
        with server.accept()[0] as caller:
            for _ in range(ROUND_TRIPS):
                caller.sendall(caller.recv(1))
            count, began_s = 0, time.monotonic()
            while data := caller.recv(1 << 16):
                count += len(data)
            seconds = time.monotonic() - began_s
            caller.sendall(json.dumps({"bytes": count, "seconds": seconds}).encode())


def ask(address: str, port: int) -> dict[str, float]:
    """Round trip of one byte, and the rate at which bytes arrive."""
    with socket.create_connection((address, port), timeout=30) as link:
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        trips = []
        for _ in range(ROUND_TRIPS):
            began_s = time.monotonic()
            link.sendall(b"\0")
            link.recv(1)
            trips.append(time.monotonic() - began_s)
        until_s = time.monotonic() + SECONDS
        while time.monotonic() < until_s:
            link.sendall(BLOCK)
        link.shutdown(socket.SHUT_WR)
        arrived = json.loads(link.recv(1024))
    return {
        "rtt_ms_measured": round(median(trips) * 1000, 3),
        "mbit_s_measured": round(arrived["bytes"] * 8 / arrived["seconds"] / 1e6, 3),
    }


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(sys.argv[2])
    else:
        print(json.dumps(ask(sys.argv[2], int(sys.argv[3]))))  # noqa: T201
