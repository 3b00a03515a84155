"""Real runs over the exchange: two joiners behind NAT and a firewall, and an exchange that is killed."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.listening import descendants, listeners
from tests.process.test_finetune import TINY, WAIT_S, events, wait_for
from tests.process.test_join import digest, run_dir
from tsugi_cli.bench.links.namespaces import Namespaces, NoNamespace
from tsugi_kpool.sideband import keys as sideband_keys
from tsugi_kpool.sideband import token
from tsugi_kpool.sideband.keys import Role

pytestmark = [pytest.mark.process, pytest.mark.timeout(300)]

ROOT = Path(__file__).resolve().parent.parent.parent
HUB, PORT = "10.207.0.1", 51820
HOME, ROUTER = "192.168.1.2", "192.168.1.1"
"""Of both homes: machines behind different routers may well have the same address."""


class Internet:
    """A hub behind a firewall with two open ports, and two homes behind routers that let nobody in."""

    homes = ("home0", "home1")

    def __init__(self, namespaces: Namespaces) -> None:
        self._made = namespaces

    def lay(self) -> None:
        made = self._made
        for name in ("internet", "hub"):
            made.add(name)
        made.run("internet", "ip", "link", "add", "bridge", "type", "bridge")
        made.run("internet", "ip", "link", "set", "bridge", "up")
        self._plug("hub", HUB)
        for number, home in enumerate(self.homes):
            router = f"router{number}"
            made.add(router)
            made.add(home)
            self._plug(router, f"10.207.0.{11 + number}")
            made.run(home, *self._cable("wan", router, "lan"))
            for name, device, address in ((home, "wan", HOME), (router, "lan", ROUTER)):
                made.run(name, "ip", "addr", "add", f"{address}/24", "dev", device)
                made.run(name, "ip", "link", "set", device, "up")
            made.run(home, "ip", "route", "add", "default", "via", ROUTER)
            self._tables(router, "masquerade", "wan")
            self._tables(home, "only")
        self._tables("hub", "only", str(PORT), str(PORT + 1))

    def start(self, name: str, *words: str, cwd: Path) -> subprocess.Popen[str]:
        """The command line on a machine, in a directory of its own."""
        cwd.mkdir(exist_ok=True)
        command = self._made.inside(name, [sys.executable, "-m", "tsugi_cli.app", *words])
        pipe = subprocess.PIPE
        return subprocess.Popen(command, cwd=cwd, stdin=pipe, stdout=pipe, stderr=pipe, text=True)

    def _plug(self, name: str, address: str) -> None:
        self._made.run("internet", *self._cable(name, name, "wan"))
        self._made.run("internet", "ip", "link", "set", name, "master", "bridge", "up")
        self._made.run(name, "ip", "addr", "add", f"{address}/24", "dev", "wan")
        self._made.run(name, "ip", "link", "set", "wan", "up")

    def _cable(self, near: str, name: str, far: str) -> tuple[str, ...]:
        ends = (near, "type", "veth", "peer", "name", far, "netns", self._made.process(name))
        return ("ip", "link", "add", *ends)

    def _tables(self, name: str, *words: str) -> None:
        command = self._made.inside(name, [sys.executable, "-m", "tests.nat", *words])
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode:
            raise NoNamespace(done.stderr.strip())


@pytest.fixture
def internet() -> Iterator[Internet]:
    with contextlib.ExitStack() as laid:
        try:
            made = Internet(laid.enter_context(Namespaces()))
            made.lay()
        except NoNamespace as error:
            pytest.skip(str(error))
        yield made


@pytest.fixture
def processes() -> Iterator[list[subprocess.Popen[str]]]:
    """Ended with the test: the first signal asks, the second insists."""
    found: list[subprocess.Popen[str]] = []
    yield found
    for process in [*found, *found]:
        process.terminate()
    for process in found:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=30)
        process.kill()


def exchanges(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """The exchange's process of a launcher."""
    children = psutil.Process(process.pid).children(recursive=True)
    return [each for each in children if "tsugi_kpool.exchange.process" in each.cmdline()]


def test_two_joiners_behind_nat_train_to_the_end_and_an_exchange_that_is_killed_costs_nothing(
    internet: Internet, tmp_path: Path, processes: list[subprocess.Popen[str]]
) -> None:
    """No port but the hub's two is open anywhere, no machine knows another's address, nothing is plain text."""
    slow = "fault.slow=[0:4,1:4,2:4]"
    settings = ("topology.replicas=3", "topology.here=1", "train.max_steps=120", slow)
    at = (f"sideband.bind={HUB}", f"sideband.port={PORT}")
    launcher = internet.start("hub", "finetune", *TINY, *settings, *at, cwd=tmp_path / "here")
    processes.append(launcher)
    run = run_dir(tmp_path / "here", launcher)
    secret = token.write(sideband_keys.load(run / "sideband" / "keys.json"), Role.MEMBER, addressed=True)
    joined = [internet.start(home, "join", secret, "--yes", cwd=tmp_path / home) for home in internet.homes]
    processes += joined
    wait_for(run, "committed", launcher)
    for process in joined:
        open_doors = [each for pid in descendants(process.pid) for each in listeners(pid) if each.kind == "tcp"]
        assert open_doors == [], "a joiner listens at nothing"
    (exchange,) = exchanges(launcher)
    exchange.kill()
    for process in joined:
        _, wrong = process.communicate(timeout=WAIT_S)
        assert process.returncode == 0, wrong
    _, wrong = launcher.communicate(timeout=WAIT_S)
    assert launcher.returncode == 0, wrong
    runs = [run, *((tmp_path / home / "runs" / "latest").resolve() for home in internet.homes)]
    assert len({digest(each) for each in runs}) == 1
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["samples"], summary["replayed"]) == (240, 0)
    assert all(row["samples"] > 0 for row in summary["replicas"])
    generations = [event["members"] for event in events(run) if event["event"] == "generation"]
    assert generations == [[0, 1, 2]], "the exchange's death is nobody's: no group is formed anew"
    assert any("another one goes on" in str(event.get("text", event)) for event in events(run))
    assert not any(event["event"] == "refused" for event in events(run)), "an honest fleet is never refused"
