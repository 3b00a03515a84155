"""Real runs over networks as they are: a hub alone that is cut off, frozen, killed; names, IPv6, MTU, firewalls.

Three machines, which are network namespaces: nothing is common to them but the network.
"""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.machines import Machines, ended, made, member_token
from tests.process.test_finetune import TINY, events
from tests.support import await_true

pytestmark = [pytest.mark.process, pytest.mark.timeout(400)]

HUB, PORT = "10.207.0.1", 51820
OTHERS = {"a": "10.207.0.2", "b": "10.207.0.3"}


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[Machines]:
    yield from made(tmp_path)


def rounds(run: Path) -> int:
    return sum(event["event"] == "committed" for event in events(run))


def await_rounds(run: Path, more: int, *alive: subprocess.Popen[str]) -> None:
    """Wait for so many more rounds; these processes must still be there."""
    target = rounds(run) + more
    await_true(
        lambda: rounds(run) >= target or any(each.poll() is not None for each in alive), f"{more} rounds", 150.0
    )
    for each in alive:
        assert each.poll() is None, each.communicate()


@pytest.mark.parametrize("fault", ["frozen 60", "cut 10", "cut 30", "killed"])
def test_a_hub_alone(machines, fault):
    for name, address in {"hub": HUB, **OTHERS}.items():
        machines.plug(name, address)
    at = (f"sideband.bind={HUB}", f"sideband.port={PORT}")
    settings = ("topology.replicas=2", "train.max_steps=240", "fault.step_s=[0:0.2,1:0.2]")
    hub = machines.start("hub", "hub", *TINY, *settings, *at)
    run = machines.run_of("hub", hub)
    joined = [machines.start(name, "join", member_token(run), "--yes") for name in OTHERS]
    await_rounds(run, 2, hub, *joined)
    what, _, seconds = fault.partition(" ")
    if what == "frozen":
        hub.send_signal(signal.SIGSTOP)
        time.sleep(float(seconds))
        hub.send_signal(signal.SIGCONT)
    elif what == "cut":
        machines.cut("hub")
        time.sleep(float(seconds))
        machines.heal("hub")
    else:
        hub.kill()
        print("KILLED", hub.communicate())
        hub = machines.start("hub", "hub", "--run", str(run))
    await_rounds(run, 2, hub, *joined)
    for each in (*joined, hub):
        print(ended(each))
    print((run / "events.jsonl").read_text()[-6000:])
    summary = json.loads((run / "summary.json").read_text())
    print(json.dumps(summary, indent=1))
    print(sorted(run.rglob("*")))
    assert (summary["outcome"], summary["samples"]) == ("finished", 480)
