"""Packets from cable to cable, late and lossy: `python -m tsugi_cli.bench.links.wire SEED NEAR:FAR ...` there.

What the kernel hands to NEAR is sent on from FAR, and the other way round, by packet sockets: no module is needed
that a kernel may lack (`netem`), no device that only root may open (TUN), and it works in a user namespace. The
process reads lines of JSON, each a `Weather`, and answers with what it has counted; it ends with its input.
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
"""linux/if_packet.h. With a header of virtio, checksums that the kernel has left open stay open."""
BUFFER_BYTES = 4 << 20
"""Asked for, for packets that have not been read yet; the kernel grants at most net.core.rmem_max."""
FRAME_BYTES = 1 << 17
HEADER_BYTES = 10
"""struct virtio_net_hdr in front of each frame."""
AT_ONCE = 32
"""Packets of one end, before the others and what is due have their turn."""
END_S = 10.0
NEAR, FAR = 0, 1


@dataclass(frozen=True)
class Weather:
    """What happens to packets on every cable."""

    delay_s: float = 0.0
    """One way."""
    jitter_s: float = 0.0
    """At most so much more, evenly drawn for each packet. Nothing is overtaken."""
    loss: float = 0.0
    """The share of packets that never arrive, each drawn for itself."""
    cut: tuple[int, ...] = ()
    """Ends (0 near, 1 far) whose packets all get lost."""
    bytes_s: float = float("inf")


class Lane:
    """One direction of a cable: what becomes of each of its packets. No clock, no socket; the seed decides."""

    def __init__(self, end: int, seed: str) -> None:
        self.counts: Counter[str] = Counter()
        """Packets: carried, lost, cut."""
        self._end = end
        self._lot, self._jitter = random.Random(seed), random.Random(f"{seed} jitter")
        self._free_s = self._newest_s = 0.0

    def due_s(self, weather: Weather, packet_bytes: int, now_s: float) -> float | None:
        """When it arrives; None: never."""
        fate = "cut" if self._end in weather.cut else "lost" if self._lot.random() < weather.loss else "carried"
        self.counts[fate] += 1
        if fate != "carried":
            return None
        self._free_s = max(now_s, self._free_s) + packet_bytes / weather.bytes_s
        late_s = weather.delay_s + weather.jitter_s * self._jitter.random()
        self._newest_s = max(self._newest_s, self._free_s + late_s)
        return self._newest_s


class Carrier:
    """Owns the sockets of all cables and carries between them until its input ends."""

    def __init__(self, seed: str, pairs: Sequence[tuple[str, str]]) -> None:
        self._ends = [_packets(device) for pair in pairs for device in pair]
        self._lanes = [Lane(number % 2, f"{seed} {number}") for number in range(len(self._ends))]
        self._weather = Weather()
        """Until the first order nothing is carried."""
        self._under_way: list[tuple[float, int, int, bytes]] = []
        """(when it is due, its number, from which end, the packet)"""
        self._number = 0
        self._overrun, self._late_s = 0, 0.0
        self._frame = bytearray(FRAME_BYTES)

    def run(self) -> None:
        """Until end of input."""
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
        """Take in the next order; false when there will be none."""
        if not (line := os.read(orders, 1 << 16)):
            return False
        self._weather = Weather(**json.loads(line))
        print(json.dumps(self._counted()), flush=True)  # noqa: T201
        return True

    def _take(self, number: int) -> None:
        """Packets that have come to this end."""
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
        """Everything that is due."""
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
    """What a wire has done since it was laid."""

    lanes: list[dict[str, int]]
    """Packets carried, lost and cut, by the end that they came to: the near and the far one of each cable in turn."""
    overrun: int
    """Packets that the kernel dropped: they came faster than this program could read or write them."""
    late_ms: float
    """How much later than due packets went out, on average: what this program adds to a delay."""

    def packets(self, fate: str) -> int:
        return sum(lane.get(fate, 0) for lane in self.lanes)


class Wire:
    """The process that carries, as its owner sees it. Starts when made.

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
        """From now on it is like this; what was counted until then."""
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
        """What was counted so far."""
        return self.set(self.weather)

    def stop(self) -> None:
        """End it."""
        try:
            self._process.communicate(timeout=END_S)  # closes its input
        except (subprocess.TimeoutExpired, ValueError):
            self._process.kill()
            self._process.wait()


def _packets(device: str) -> socket.socket:
    """All that comes to this end of a cable, and nothing that leaves it."""
    found = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    found.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
    found.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES)
    found.bind((device, ETH_P_ALL))
    found.setblocking(False)
    return found


if __name__ == "__main__":
    Carrier(sys.argv[1], [tuple(pair.split(":")) for pair in sys.argv[2:]]).run()  # type: ignore[misc]
