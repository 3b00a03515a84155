"""Real runs over networks as they are: a hub alone that is cut off or killed; what lies between two replicas.

Machines are network namespaces: nothing is common to them but the network.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.machines import DEVICE, NETWORK, Machines, ended, made, member_token, port
from tests.process.test_finetune import TINY, events
from tests.process.test_join import digest
from tests.support import await_true
from tsugi_cli.bench.links.namespaces import NoNamespace

pytestmark = [pytest.mark.process, pytest.mark.nightly, pytest.mark.timeout(400)]

HUB, PORT = "10.207.0.1", 51820
OTHERS = {"a": "10.207.0.2", "b": "10.207.0.3"}
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
    machines.cut("hub")
    time.sleep(float(seconds))  # the fault's length
    machines.heal("hub")
    return hub


@pytest.mark.parametrize("fault", ["cut 10", "cut 30", "killed"])
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
