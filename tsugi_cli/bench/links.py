"""Where the replicas of a benchmark run: on this machine as it is, or behind links whose rate the kernel limits.

Each replica gets a network namespace, as if it were a machine. Virtual cables (veth) lead to a switch, a namespace
with one bridge, or two for racks; `tbf` limits the rate of what goes into a cable, at both of its ends.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from tsugi_kpool.errors import EnvironmentError_

from .spec import Scenario

BURST_S = 0.01
"""A bucket holds what passes in this time, or one large packet."""
QUEUE_MS = 100
"""What waits longer in front of a cable is dropped, and TCP slows down."""
PROBE_TIMEOUT_S = 60


class Here:
    """This machine as it is: every replica on loopback."""

    interface = "lo"
    apart = False
    """Whether replicas are on machines of their own, so that all but the first have to join."""

    def inside(self, _replica: int, argv: Sequence[str]) -> tuple[str, ...]:
        """The command line that runs on the machine of a replica."""
        return tuple(argv)

    def address(self, _replica: int) -> str:
        """Of a replica's machine, as the others reach it."""
        return "127.0.0.1"

    def measured(self) -> dict[str, Any]:
        """What the links are like; nothing where they are as they are."""
        return {}


class Cables(Here):
    """Namespaces and cables; `lay` makes them, `tear` removes them, and never anything else."""

    interface = "cable"
    apart = True

    def __init__(self, scenario: Scenario, replicas: int) -> None:
        self._scenario, self._replicas = scenario, replicas
        self._stem = f"tsugi-{os.getpid()}"
        self._switch = f"{self._stem}-switch"

    def inside(self, replica: int, argv: Sequence[str]) -> tuple[str, ...]:
        return ("ip", "netns", "exec", self._name(replica), *argv)

    def address(self, replica: int) -> str:
        return f"10.204.0.{replica + 1}"

    def lay(self) -> None:
        """Make everything.

        Raises:
            CalledProcessError: the kernel or this user cannot.
        """
        racks = self._scenario.link == "racks"
        _ip("netns", "add", self._switch)
        for number in range(2 if racks else 1):
            _ip("-n", self._switch, "link", "add", f"bridge{number}", "type", "bridge")
            _ip("-n", self._switch, "link", "set", f"bridge{number}", "up")
        for replica in range(self._replicas):
            self._plug(replica, rack=int(racks and replica >= self._replicas // 2))
        if racks:
            _ip("-n", self._switch, "link", "add", "rack0", "type", "veth", "peer", "name", "rack1")
            for number in range(2):
                _ip("-n", self._switch, "link", "set", f"rack{number}", "master", f"bridge{number}", "up")
                self._narrow(self._switch, f"rack{number}")

    def tear(self) -> None:
        """Remove the namespaces; cables and bridges go with them."""
        for name in (*map(self._name, range(self._replicas)), self._switch):
            with contextlib.suppress(subprocess.CalledProcessError):
                _ip("netns", "del", name)

    def measured(self) -> dict[str, Any]:
        """Rate and round trip between the first and the last replica, as a program sees them.

        Raises:
            EnvironmentError_: no answer.
        """
        last = self._replicas - 1
        probe = [sys.executable, "-m", "tsugi_cli.bench.probe"]
        server = subprocess.Popen(
            self.inside(last, [*probe, "serve", self.address(last)]), stdout=subprocess.PIPE, text=True
        )
        try:
            assert server.stdout is not None  # noqa: S101
            port = server.stdout.readline().strip()
            asked = self.inside(0, [*probe, "ask", self.address(last), port])
            done = subprocess.run(asked, capture_output=True, text=True, timeout=PROBE_TIMEOUT_S, check=True)
            return {
                "between": f"replica 0 and replica {last}",
                "mbit_s_set": self._scenario.mbit_s,
                **json.loads(done.stdout),
            }
        except (subprocess.SubprocessError, ValueError) as error:
            raise EnvironmentError_(f"the links of bench.scenario could not be measured: {error}") from error
        finally:
            server.kill()
            server.wait()

    def _plug(self, replica: int, rack: int) -> None:
        name, port = self._name(replica), f"port{replica}"
        _ip("netns", "add", name)
        _ip("-n", name, "link", "set", "lo", "up")
        _ip("link", "add", self.interface, "netns", name, "type", "veth", "peer", "name", port, "netns", self._switch)
        _ip("-n", name, "addr", "add", f"{self.address(replica)}/24", "dev", self.interface)
        _ip("-n", name, "link", "set", self.interface, "up")
        _ip("-n", name, "route", "add", "default", "dev", self.interface)
        _ip("-n", self._switch, "link", "set", port, "master", f"bridge{rack}", "up")
        if self._scenario.link == "each":
            self._narrow(name, self.interface)
            self._narrow(self._switch, port)

    def _narrow(self, name: str, device: str) -> None:
        """From now on, what goes into this end of a cable goes slowly."""
        bits = self._scenario.mbit_s * 1e6
        burst = max(int(bits * BURST_S / 8), 4096)
        shaped = ["rate", f"{bits:.0f}bit", "burst", f"{burst}b", "latency", f"{QUEUE_MS}ms"]
        _run("ip", "netns", "exec", name, "tc", "qdisc", "add", "dev", device, "root", "tbf", *shaped)

    def _name(self, replica: int) -> str:
        return f"{self._stem}-{replica}"


@contextmanager
def fleet(scenario: Scenario, replicas: int) -> Iterator[Here]:
    """What the scenario says about links, while the block lasts.

    Raises:
        EnvironmentError_: links cannot be shaped here; says why.
    """
    if scenario.link == "none":
        yield Here()
        return
    missing = [command for command in ("ip", "tc") if shutil.which(command) is None]
    if missing:
        raise EnvironmentError_(f"{_needs(scenario)}, but there is no command {' or '.join(missing)} (iproute2)")
    cables = Cables(scenario, replicas)
    try:
        try:
            cables.lay()
        except subprocess.CalledProcessError as error:
            raise EnvironmentError_(f"{_needs(scenario)}: {' '.join(error.cmd)}: {error.stderr.strip()}") from error
        yield cables
    finally:
        cables.tear()


def _needs(scenario: Scenario) -> str:
    return f"bench.scenario.link={scenario.link} needs network namespaces with shaped links, as root has them"


def _ip(*words: str) -> None:
    _run("ip", *words)


def _run(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True, text=True)
