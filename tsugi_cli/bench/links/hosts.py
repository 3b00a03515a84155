"""Hosts of a benchmark's replicas: this machine as it is, or namespaces behind slow, delayed and lossy links.

Each replica gets a network namespace, as if it were a machine. Virtual cables (veth) lead to a switch, a namespace
with one bridge, or two for racks. `tbf` limits the rate into a cable at both of its ends. A cable with delay or loss
is two cables, with a wire between them.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from tsugi_cli.bench.spec import Scenario
from tsugi_kpool.errors import MachineError

from .namespaces import Namespaces, NoNamespace
from .wire import Weather, Wire

BURST_S = 0.01
"""A bucket holds what passes in this time, or one large packet."""
QUEUE_MS = 100
"""Longest wait in front of a cable: after it packets are dropped, and TCP slows down."""
PROBE_TIMEOUT_S = 60
SWITCH = "switch"


class Here:
    """This machine as it is: every replica on loopback."""

    interface = "lo"
    apart = False
    """Whether replicas are on machines of their own: then all but the first have to join."""

    def inside(self, _replica: int, argv: Sequence[str]) -> tuple[str, ...]:
        """Return the command line that runs on a replica's machine."""
        return tuple(argv)

    def address(self, _replica: int) -> str:
        """Return the address of a replica's machine, as the others reach it."""
        return "127.0.0.1"

    def measured(self) -> dict[str, Any]:
        """Return measurements of the links; nothing where they are unchanged."""
        return {}

    def counted(self) -> dict[str, Any]:
        """Return counts of packets so far; nothing where nobody counts."""
        return {}


class Cables(Here):
    """Namespaces and cables: `lay` makes them, `tear` ends the processes between them."""

    interface = "cable"
    apart = True

    def __init__(self, scenario: Scenario, replicas: int, namespaces: Namespaces) -> None:
        self._scenario, self._replicas, self._namespaces = scenario, replicas, namespaces
        self._pairs: list[tuple[str, str]] = []
        """(near, far) ends that the wire connects."""
        self.wire: Wire | None = None
        """The process that delays and loses packets."""

    def inside(self, replica: int, argv: Sequence[str]) -> tuple[str, ...]:
        return self._namespaces.inside(str(replica), argv)

    def address(self, replica: int) -> str:
        return f"10.204.0.{replica + 1}"

    def lay(self) -> None:
        """Make everything.

        Raises:
            NoNamespace: the kernel or this user cannot.
        """
        racks = self._scenario.link == "racks"
        self._namespaces.add(SWITCH)
        for number in range(2 if racks else 1):
            self._ip(SWITCH, "link", "add", f"bridge{number}", "type", "bridge")
            self._ip(SWITCH, "link", "set", f"bridge{number}", "up")
        for replica in range(self._replicas):
            self._plug(replica, rack=int(racks and replica >= self._replicas // 2))
        if racks:
            self._cable((SWITCH, "rack0"), "rack1", shaped=True)
            for number in range(2):
                self._ip(SWITCH, "link", "set", f"rack{number}", "master", f"bridge{number}", "up")
        if self._pairs:
            self.wire = Wire(self._namespaces, SWITCH, self._pairs, weather(self._scenario))

    def tear(self) -> None:
        """End the wire. Namespaces, cables and bridges go when the namespaces are let go of."""
        if self.wire is not None:
            self.wire.stop()

    def measured(self) -> dict[str, Any]:
        """Return rate, round trip and loss between the first and the last replica, as a program measures them.

        Raises:
            MachineError: no answer.
        """
        last = self._replicas - 1
        probe = [sys.executable, "-m", "tsugi_cli.bench.links.probe"]
        serving = self.inside(last, [*probe, "serve", self.address(last)])
        server = subprocess.Popen(serving, stdout=subprocess.PIPE, text=True, start_new_session=True)
        try:
            port = server.stdout.readline().strip() if server.stdout else ""
            asked = self.inside(0, [*probe, "ask", self.address(last), port, f"{self._scenario.mbit_s}"])
            done = subprocess.run(
                asked, capture_output=True, text=True, timeout=PROBE_TIMEOUT_S, check=True, start_new_session=True
            )
            found = json.loads(done.stdout)
        except (subprocess.SubprocessError, ValueError) as error:
            raise MachineError(f"the links of bench.scenario could not be measured: {error}") from error
        finally:
            server.kill()
            server.communicate()
        between = f"replica 0 and replica {last}"
        return {"between": between, "made_as": self._namespaces.way, **planned(self._scenario), **found}

    def counted(self) -> dict[str, Any]:
        if self.wire is None:
            return {}
        try:
            found = self.wire.counted()
        except NoNamespace as error:
            raise MachineError(f"the links of bench.scenario broke: {error}") from error
        return {
            "packets_carried": found.packets("carried"),
            "packets_lost": found.packets("lost"),
            "packets_overrun": found.overrun,
            "packets_late_ms": round(found.late_ms, 3),
        }

    def _plug(self, replica: int, rack: int) -> None:
        name, port = str(replica), f"port{replica}"
        self._namespaces.add(name)
        self._cable((name, self.interface), port, shaped=self._scenario.link == "each")
        self._ip(name, "addr", "add", f"{self.address(replica)}/24", "dev", self.interface)
        self._ip(name, "link", "set", self.interface, "up")
        self._ip(name, "route", "add", "default", "dev", self.interface)
        self._ip(SWITCH, "link", "set", port, "master", f"bridge{rack}", "up")

    def _cable(self, end: tuple[str, str], port: str, shaped: bool) -> None:
        """Lay a cable from an end, (namespace, device), to a port of the switch."""
        if not shaped or weather(self._scenario) == Weather():
            self._veth(end, port)
        else:
            near, far = f"near-{port}", f"far-{port}"
            self._veth(end, near)
            self._veth((SWITCH, port), far)
            for device in (near, far):
                self._ip(SWITCH, "link", "set", device, "addrgenmode", "none", "up")
            for name, device in (
                end,
                (SWITCH, port),
            ):  # packets get lost, not the whole bundles that the kernel likes
                self._ip(name, "link", "set", device, "gso_max_segs", "1")
            self._pairs.append((near, far))
        if shaped:
            self._narrow(*end)
            self._narrow(SWITCH, port)

    def _veth(self, end: tuple[str, str], other: str) -> None:
        """A virtual cable; its other end is in the switch."""
        name, device = end
        place = ("netns", self._namespaces.process(name))
        self._ip(SWITCH, "link", "add", device, *place, "type", "veth", "peer", "name", other)

    def _narrow(self, name: str, device: str) -> None:
        """Limit the rate into this end of a cable."""
        bits = self._scenario.mbit_s * 1e6
        burst = max(int(bits * BURST_S / 8), 4096)
        shaped = ["rate", f"{bits:.0f}bit", "burst", f"{burst}b", "latency", f"{QUEUE_MS}ms"]
        self._namespaces.run(name, "tc", "qdisc", "add", "dev", device, "root", "tbf", *shaped)

    def _ip(self, name: str, *words: str) -> None:
        self._namespaces.run(name, "ip", *words)


def weather(scenario: Scenario) -> Weather:
    """Return what happens to a packet on each of the scenario's links."""
    return Weather(scenario.delay_ms / 1000, scenario.delay_jitter_ms / 1000, scenario.loss)


def planned(scenario: Scenario) -> dict[str, float]:
    """Return what should be measured between the first and the last replica; two links are on the way if each has
    one."""
    links = 2 if scenario.link == "each" else 1
    return {
        "mbit_s_set": scenario.mbit_s,
        "rtt_ms_set": round(2 * links * (scenario.delay_ms + scenario.delay_jitter_ms / 2), 3),
        "loss_set": round(1 - (1 - scenario.loss) ** links, 6),
    }


@contextmanager
def fleet(scenario: Scenario, replicas: int) -> Iterator[Here]:
    """Shape links as the scenario says, while the block lasts.

    Raises:
        MachineError: links cannot be shaped here; says why.
    """
    if scenario.link == "none":
        yield Here()
        return
    with ExitStack() as laid:
        try:
            cables = Cables(scenario, replicas, laid.enter_context(Namespaces()))
            laid.callback(cables.tear)
            cables.lay()
        except NoNamespace as error:
            needs = f"bench.scenario.link={scenario.link} needs network namespaces with shaped links"
            raise MachineError(f"{needs}: {error}") from error
        yield cables
