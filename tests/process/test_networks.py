"""Real runs over networks as they are: a hub alone that is cut off, frozen, killed; names, IPv6, MTU, firewalls.

Machines are network namespaces: nothing is common to them but the network.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.machines import DEVICE, NETWORK, Machines, clock_ahead, ended, made, member_token, port
from tests.process.test_finetune import TINY, WAIT_S, events, wait_for
from tests.process.test_join import digest
from tests.support import await_true
from tsugi_cli.bench.links.namespaces import NoNamespace

pytestmark = [pytest.mark.process, pytest.mark.nightly, pytest.mark.timeout(400)]

HUB, PORT = "10.207.0.1", 51820
OTHERS = {"a": "10.207.0.2", "b": "10.207.0.3"}
SHORT = [*TINY, "topology.replicas=2", "topology.here=1", "train.max_steps=12", f"sideband.port={PORT}"]
DIALS = """
import sys, time
from pathlib import Path
from tsugi_kpool.core.messages import Generation
from tsugi_kpool.engine.reaching import Reaching

replica, host, folder = int(sys.argv[1]), sys.argv[2].partition("=")[2], Path(sys.argv[3])

class Store:
    def store_put(self, key, value):
        new = folder / f"new-{replica}"
        new.write_bytes(value)
        new.rename(folder / key.replace("/", "-"))

    def store_get(self, key, timeout_s):
        path = folder / key.replace("/", "-")
        return path.read_bytes() if path.exists() else None

    def report(self, told):
        print(told.other, told.address.rpartition(":")[0], told.reason, flush=True)

trial = Reaching(Store(), replica, host)
trial.begin(Generation(3, (0, 1), 0, group_key=b"k" * 32))
sys.stdin.read()
trial.stop()
"""


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[Machines]:
    yield from made(tmp_path)


def await_rounds(run: Path, more: int, *alive: subprocess.Popen[str]) -> None:
    """Wait for so many more rounds; these processes must still be there."""

    def rounds() -> int:
        return sum(event["event"] == "committed" for event in events(run))

    target = rounds() + more
    await_true(lambda: rounds() >= target or any(each.poll() is not None for each in alive), f"{more} rounds", 150.0)
    for each in alive:
        assert each.poll() is None, each.communicate()


def adapter(machines: Machines, name: str) -> str:
    return digest((machines.folder(name) / "runs" / "latest").resolve())


def happen(fault: str, machines: Machines, hub: subprocess.Popen[str], run: Path) -> subprocess.Popen[str]:
    """Let it happen to the hub's machine; returns the hub after it."""
    what, _, seconds = fault.partition(" ")
    if what == "killed":
        hub.kill()
        hub.communicate()
        return machines.start("hub", "hub", "--run", str(run))
    hub.send_signal(signal.SIGSTOP) if what == "frozen" else machines.cut("hub")
    time.sleep(float(seconds))  # the fault's length
    hub.send_signal(signal.SIGCONT) if what == "frozen" else machines.heal("hub")
    return hub


@pytest.mark.parametrize("fault", ["frozen 60", "cut 10", "cut 30", "killed"])
def test_a_hub_alone_is_waited_for_and_has_the_adapter_at_the_end(machines, fault):
    """`tsugi hub`, two joiners and an exchange. Nobody has to join again, and nothing is trained on twice."""
    for name, address in {"hub": HUB, **OTHERS}.items():
        machines.plug(name, address)
    settings = (*TINY, "topology.replicas=2", "train.max_steps=240", "fault.step_s=[0:0.2,1:0.2]")
    hub = machines.start("hub", "hub", *settings, f"sideband.bind={HUB}", f"sideband.port={PORT}")
    run = machines.run_of("hub", hub)
    joined = [machines.start(name, "join", member_token(run), "--yes") for name in OTHERS]
    await_rounds(run, 2, hub, *joined)
    hub = happen(fault, machines, hub, run)
    await_rounds(run, 2, hub, *joined)
    said = [ended(each) for each in (*joined, hub)]
    for text in said[:2]:
        assert text.count("480/480 samples 100%  finished") <= 1, "no line comes twice"
    told = events(run)
    assert [event["members"] for event in told if event["event"] == "generation"] == [[0, 1]]
    if fault.startswith("cut"):
        assert "no replica has been heard since" in said[2]
        assert "replicas are heard again" in said[2]
    assert "the adapter has come from replica" in said[2]
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["outcome"], summary["samples"], summary["replayed"]) == ("finished", 480, 0)
    assert len({digest(run), *(adapter(machines, name) for name in OTHERS)}) == 1


def of_one_fleet(machines: Machines, run: Path, *processes: subprocess.Popen[str]) -> None:
    """All end well, with the same adapter."""
    for each in processes:
        ended(each)
    assert digest(run) == adapter(machines, "a")


def let_in(machines: Machines, run: Path) -> None:
    """Join again, and to the end: it waits for the place of who has not given it back."""
    asked = machines.start("a", "join", member_token(run), "--yes")
    said = " ".join(asked.communicate(timeout=WAIT_S))
    assert asked.returncode == 0, said


def test_ipv6_alone(machines):
    machines.plug("hub", "fd07::1")
    machines.plug("a", "fd07::2")
    launcher = machines.start("hub", "finetune", *SHORT, "sideband.bind=fd07::1")
    run = machines.run_of("hub", launcher)
    of_one_fleet(machines, run, machines.start("a", "join", member_token(run), "--yes"), launcher)


def test_a_hub_that_is_known_by_its_name(machines):
    machines.plug("hub", HUB)
    machines.plug("a", OTHERS["a"])
    machines.names("hub", HUB, "hub.example")
    launcher = machines.start("hub", "finetune", *SHORT, f"sideband.bind={HUB}", "topology.address=hub.example")
    run = machines.run_of("hub", launcher)
    unknown = machines.start("a", "join", member_token(run), "--yes")
    _, wrong = unknown.communicate(timeout=100)
    assert (unknown.returncode, "this host's name is not known" in wrong) == (11, True), wrong
    machines.names("a", HUB, "hub.example")
    of_one_fleet(machines, run, machines.start("a", "join", member_token(run), "--yes"), launcher)


def test_two_interfaces_and_only_the_second_one_is_reached(machines):
    machines.plug("hub", HUB, "10.208.0.1")
    machines.plug("a", "10.208.0.2")
    further = f"10.208.0.1:{PORT}"
    at = ("sideband.bind=0.0.0.0", f"topology.address={HUB}", f"sideband.reached_at=[{further}]")
    launcher = machines.start("hub", "finetune", *SHORT, *at)
    run = machines.run_of("hub", launcher)
    of_one_fleet(machines, run, machines.start("a", "join", member_token(run, f"tcp://{further}"), "--yes"), launcher)


def test_a_clock_that_is_a_day_ahead(machines, tmp_path):
    library = clock_ahead(tmp_path)
    machines.plug("hub", HUB)
    machines.plug("a", OTHERS["a"])
    launcher = machines.start("hub", "finetune", *SHORT, f"sideband.bind={HUB}")
    run = machines.run_of("hub", launcher)
    words = ("join", member_token(run), "--yes")
    joined = machines.start("a", *words, variables={"LD_PRELOAD": str(library)}, anew=True)
    of_one_fleet(machines, run, joined, launcher)


@pytest.mark.parametrize(
    ("opened", "says"),
    [
        ((), "no hub answers at tcp://10.207.0.1:51820: nobody listens there (timed out)"),
        ((PORT,), "no answer at all"),
    ],
    ids=["both ports", "the exchange's"],
)
def test_a_firewall_before_the_hub_is_named_by_join_or_doctor(machines, opened, says):
    machines.plug("hub", HUB)
    machines.plug("a", OTHERS["a"])
    launcher = machines.start("hub", "finetune", *SHORT, f"sideband.bind={HUB}")
    run = machines.run_of("hub", launcher)
    try:
        machines.tables("hub", "only", *map(str, opened))
    except NoNamespace as error:
        pytest.skip(str(error))
    words = ("doctor", "--hub") if opened else ("join", "--yes")
    asked = machines.start("a", *words, member_token(run))
    said, wrong = asked.communicate(timeout=100)
    assert (asked.returncode, says in " ".join((said + wrong).split())) == (11, True), said + wrong


def test_a_path_that_drops_large_packets_is_named(machines):
    """An MTU black hole before the joiner: the bridge drops what is larger than 1280, and says so to nobody."""
    machines.plug("hub", HUB)
    machines.plug("a", OTHERS["a"])
    machines.run(NETWORK, "ip", "link", "set", port("a"), "mtu", "1280")
    machines.run("hub", "ip", "link", "set", DEVICE, "gso_max_segs", "1")
    launcher = machines.start("hub", "finetune", *SHORT, f"sideband.bind={HUB}")
    run = machines.run_of("hub", launcher)
    asked = machines.start("a", "join", member_token(run), "--yes")
    _, wrong = asked.communicate(timeout=100)
    assert (asked.returncode, "drops large packets (MTU: try 1280)" in wrong) == (11, True), wrong
    machines.run("a", "ip", "link", "set", DEVICE, "mtu", "1280")
    let_in(machines, run)
    of_one_fleet(machines, run, launcher)


def test_replicas_of_a_group_that_do_not_reach_each_other_are_named(machines):
    """Both reach the hub, and each is behind a firewall of its own."""
    machines.plug("hub", HUB)
    for name, address in OTHERS.items():
        machines.plug(name, address)
    settings = (*TINY, "topology.replicas=2", "train.max_steps=12", "topology.trust_network=true")
    hub = machines.start("hub", "hub", *settings, f"sideband.bind={HUB}", f"sideband.port={PORT}")
    run = machines.run_of("hub", hub)
    try:
        for name in OTHERS:
            machines.tables(name, "only")
    except NoNamespace as error:
        pytest.skip(str(error))
    for name in OTHERS:
        machines.start(name, "join", member_token(run), "--yes")
    wait_for(run, "unreached", hub)
    told = next(event for event in events(run) if event["event"] == "unreached")
    assert {told["replica"], told["other"]} == {0, 1}
    assert told["address"].rpartition(":")[0] in OTHERS.values()
    assert told["reason"].startswith("no answer to a connection")
    asked = machines.start("hub", "sideband", "status", "--run", str(run))
    said, _ = asked.communicate(timeout=100)
    assert f"cannot reach replica {told['other']} at" in " ".join(said.split())


@pytest.mark.parametrize("what", ["firewall", "mtu"])
def test_what_lies_between_two_replicas_is_told_apart(machines, tmp_path, what):
    """Without a run: two members of a group, one of which nobody reaches, or no large packets do."""
    (tmp_path / "store").mkdir()
    for name, address in OTHERS.items():
        machines.plug(name, address)
        machines.run(name, "ip", "link", "set", DEVICE, "gso_max_segs", "1")
    try:
        machines.tables("a", "only") if what == "firewall" else machines.run(
            NETWORK, "ip", "link", "set", port("a"), "mtu", "1280"
        )
    except NoNamespace as error:
        pytest.skip(str(error))
    (tmp_path / "dials.py").write_text(DIALS)
    started = []
    for replica, (name, address) in enumerate(OTHERS.items()):
        words = (str(tmp_path / "dials.py"), str(replica), f"address={address}", str(tmp_path / "store"))
        started.append(machines.execute(name, sys.executable, *words))
    told = started[1].stdout.readline()
    for each in started:
        ended(each)
    why = "no answer to a connection" if what == "firewall" else "small packets pass and large ones do not"
    assert told.startswith(f"0 {OTHERS['a']} {why}")


def test_a_joiner_that_is_killed_while_its_data_come_goes_on_from_there(machines):
    machines.plug("hub", HUB)
    machines.plug("a", OTHERS["a"])
    rows = [json.dumps({"prompt": f"question {n} " * 40, "completion": f"answer {n * n}"}) for n in range(6000)]
    machines.folder("hub").mkdir()
    (machines.folder("hub") / "mine.jsonl").write_text("\n".join(rows), encoding="utf-8")
    machines.run("hub", "tc", "qdisc", "add", "dev", DEVICE, "root", "tbf", "rate", "4mbit", "burst", "32kbit",
                 "latency", "400ms")  # fmt: skip
    launcher = machines.start(
        "hub", "finetune", *SHORT, "data=mine.jsonl", "data.n_train=4000", f"sideband.bind={HUB}"
    )
    run = machines.run_of("hub", launcher)
    cache = machines.folder("a") / "home" / ".cache" / "tsugi" / "prepared"

    def fetched() -> int:
        return sum(path.stat().st_size for path in cache.glob(".fetching-*/entry/*"))

    killed = machines.start("a", "join", member_token(run), "--yes")
    await_true(lambda: fetched() > 200_000 or killed.poll() is not None, "some of the data", 150)
    killed.kill()
    killed.communicate()
    assert fetched() > 200_000, "it was killed in the middle"
    let_in(machines, run)
    of_one_fleet(machines, run, launcher)
    assert json.loads((run / "summary.json").read_text())["replayed"] == 0
