"""A wire that delays and loses packets: `python -m tsugi_cli.bench.links.wire SEED NEAR:FAR ...`.

It sends what the kernel hands to NEAR on from FAR, and the other way round, with packet sockets. So it needs no
module that a kernel may lack (`netem`) and no device that only root may open (TUN), and works in a user namespace.
The process reads JSON lines, each a `Weather`, and answers with its counts; it ends with its input.
"""

from __future__ import annotations

import heapq
import json
import os
import random
import select
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from tsugi_cli.signals import deaf

from .namespaces import Namespaces, NoNamespace

ETH_P_ALL = 0x0003
SOL_PACKET, PACKET_STATISTICS, PACKET_VNET_HDR, PACKET_IGNORE_OUTGOING = 263, 6, 15, 23
"""Numbers from linux/if_packet.h. With a virtio header, checksums that the kernel has left open stay open."""
BUFFER_BYTES = 4 << 20
"""Receive buffer that is asked for; the kernel grants at most net.core.rmem_max."""
FRAME_BYTES = 1 << 17
HEADER_BYTES = 10
"""Bytes of the struct virtio_net_hdr in front of each frame."""
AT_ONCE = 32
"""Packets taken from one end in a row, before the others and due packets have their turn."""
END_S = 10.0
NEAR, FAR = 0, 1


@dataclass(frozen=True)
class Weather:
    """What happens to packets on every cable."""

    delay_s: float = 0.0
    """Delay one way."""
    jitter_s: float = 0.0
    """Largest extra delay, drawn evenly for each packet. No packet overtakes another."""
    loss: float = 0.0
    """Share of packets that are lost, drawn for each packet."""
    cut: tuple[int, ...] = ()
    """Ends (0 near, 1 far) that are cut: all their packets are lost."""
    bytes_s: float = float("inf")


class Lane:
    """One direction of a cable: the fate of each packet. No clock, no socket; the seed decides."""

    def __init__(self, end: int, seed: str) -> None:
        self.counts: Counter[str] = Counter()
        """Counts of packets: carried, lost, cut."""
        self._end = end
        self._lot, self._jitter = random.Random(seed), random.Random(f"{seed} jitter")
        self._free_s = self._newest_s = 0.0

    def due_s(self, weather: Weather, packet_bytes: int, now_s: float) -> float | None:
        """Return when the packet arrives; None: never."""
        fate = "cut" if self._end in weather.cut else "lost" if self._lot.random() < weather.loss else "carried"
        self.counts[fate] += 1
        if fate != "carried":
            return None
        self._free_s = max(now_s, self._free_s) + packet_bytes / weather.bytes_s
        late_s = weather.delay_s + weather.jitter_s * self._jitter.random()
        self._newest_s = max(self._newest_s, self._free_s + late_s)
        return self._newest_s


class Carrier:
    """Owns the sockets of all cables, and carries packets between them until its input ends."""

    def __init__(self, seed: str, pairs: Sequence[tuple[str, str]]) -> None:
        self._ends = [_packets(device) for pair in pairs for device in pair]
        self._lanes = [Lane(number % 2, f"{seed} {number}") for number in range(len(self._ends))]
        self._weather = Weather()
        """The weather; nothing is carried before the first order."""
        self._under_way: list[tuple[float, int, int, bytes]] = []
        """Packets under way: (due time, number, end that it came to, packet)."""
        self._number = 0
        self._overrun, self._late_s = 0, 0.0
        self._frame = bytearray(FRAME_BYTES)

    def run(self) -> None:
        """Carry packets until the end of input."""
        numbers = {end.fileno(): number for number, end in enumerate(self._ends)}
        orders = sys.stdin.fileno()
        going_on = self._obey(orders)
        while going_on:
            wait_s = max(0.0, self._under_way[0][0] - time.monotonic()) if self._under_way else None
            readable, _, _ = select.select([orders, *numbers], [], [], wait_s)
            for found in readable:
                if found == orders:
                    going_on = self._obey(orders)
                else:
                    self._take(numbers[found])
            self._deliver()

    def _obey(self, orders: int) -> bool:
        """Take in the next order; returns false at the end of input."""
        if not (line := os.read(orders, 1 << 16)):
            return False
        self._weather = Weather(**json.loads(line))
        print(json.dumps(self._counted()), flush=True)  # noqa: T201
        return True

    def _take(self, number: int) -> None:
        """Take in packets that have come to this end."""
        end, lane = self._ends[number], self._lanes[number]
        for _ in range(AT_ONCE):
            try:
                size = end.recv_into(self._frame)
            except BlockingIOError:
                return
            except OSError:  # the device went down; it may come up again
                return
            due_s = lane.due_s(self._weather, size - HEADER_BYTES, time.monotonic())
            if due_s is not None:
                self._number += 1
                heapq.heappush(self._under_way, (due_s, self._number, number, bytes(self._frame[:size])))

    def _deliver(self) -> None:
        """Send every packet that is due."""
        while self._under_way and self._under_way[0][0] <= (now_s := time.monotonic()):
            due_s, _, number, frame = heapq.heappop(self._under_way)
            self._late_s += now_s - due_s
            try:
                self._ends[number ^ 1].send(frame)
            except OSError:  # the device there is not up yet, or its queue is full
                self._overrun += 1

    def _counted(self) -> dict[str, object]:
        for end in self._ends:
            statistics = end.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8)
            self._overrun += int.from_bytes(statistics[4:], sys.byteorder)
        carried = sum(lane.counts["carried"] for lane in self._lanes)
        return {
            "lanes": [dict(lane.counts) for lane in self._lanes],
            "overrun": self._overrun,
            "late_ms": 1000 * self._late_s / max(1, carried - len(self._under_way)),
        }


@dataclass(frozen=True)
class Counted:
    """Counts of a wire since it was laid."""

    lanes: list[dict[str, int]]
    """Packets carried, lost and cut, by the end that they came to: near and far end of each cable in turn."""
    overrun: int
    """Packets that the kernel dropped because this program was too slow."""
    late_ms: float
    """Mean delay of packets beyond the one asked for: what this program adds."""

    def packets(self, fate: str) -> int:
        return sum(lane.get(fate, 0) for lane in self.lanes)


class Wire:
    """The wire's process, seen from its owner. It starts when this is made.

    Args:
        place: The namespace that has all the ends.
        pairs: (near, far) names of devices.
        weather: From the first packet on.
        seed: Of what gets lost.

    Raises:
        NoNamespace: it cannot be started; says why.
    """

    def __init__(
        self, namespaces: Namespaces, place: str, pairs: Sequence[tuple[str, str]], weather: Weather, seed: int = 0
    ) -> None:
        command = [sys.executable, "-m", "tsugi_cli.bench.links.wire", str(seed), *map(":".join, pairs)]
        pipe = subprocess.PIPE
        with deaf():
            self._process = subprocess.Popen(
                namespaces.inside(place, command), stdin=pipe, stdout=pipe, stderr=pipe, text=True,
                start_new_session=True,
            )  # fmt: skip
        self.set(weather)

    def set(self, weather: Weather) -> Counted:
        """Change the weather; returns the counts up to now."""
        self.weather, process = weather, self._process
        try:
            if process.stdin is None or process.stdout is None:
                raise NoNamespace("no pipe")
            process.stdin.write(json.dumps(asdict(weather)) + "\n")
            process.stdin.flush()
            return Counted(**json.loads(process.stdout.readline()))
        except (OSError, ValueError) as error:
            process.kill()
            said = process.communicate()[1].strip().splitlines()
            raise NoNamespace(f"the wire has ended: {said[-1] if said else error}") from error

    def counted(self) -> Counted:
        """Return the counts so far."""
        return self.set(self.weather)

    def stop(self) -> None:
        """End the process."""
        try:
            self._process.communicate(timeout=END_S)  # closes its input
        except (subprocess.TimeoutExpired, ValueError):
            self._process.kill()
            self._process.wait()


def _packets(device: str) -> socket.socket:
    """Open a socket for all packets that come to this end of a cable, and none that leave it."""
    found = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    found.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
    found.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES)
    found.bind((device, ETH_P_ALL))
    found.setblocking(False)
    return found


if __name__ == "__main__":
    Carrier(sys.argv[1], [tuple(pair.split(":")) for pair in sys.argv[2:]]).run()  # type: ignore[misc]
