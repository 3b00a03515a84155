"""Real runs over the exchange: two joiners behind NAT and a firewall, and an exchange that is killed."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.listening import Listener, descendants, listeners
from tests.machines import Machines, ended, exchanges, made, member_token
from tests.process.test_finetune import TINY, events, wait_for
from tests.process.test_join import digest
from tsugi_cli.bench.links.namespaces import NoNamespace

pytestmark = [pytest.mark.process, pytest.mark.timeout(400)]

HUB, PORT = "10.207.0.1", 51820
HOMES = ("home0", "home1")


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[Machines]:
    yield from made(tmp_path)


@pytest.fixture
def internet(machines: Machines) -> Machines:
    """A hub behind a firewall with two open ports, and two homes behind routers that let nobody in."""
    machines.plug("hub", HUB)
    try:
        for number, home in enumerate(HOMES):  # machines behind different routers may well have the same address
            machines.behind(home, "192.168.1.2", f"10.207.0.{11 + number}", "192.168.1.1")
        machines.tables("hub", "only", str(PORT), str(PORT + 1))
    except NoNamespace as error:
        pytest.skip(str(error))
    return machines


def doors(pid: int) -> list[Listener]:
    """What a process listens at; nothing when it has ended meanwhile."""
    with contextlib.suppress(OSError):
        return list(listeners(pid))
    return []


def test_two_joiners_behind_nat_train_to_the_end_and_an_exchange_that_is_killed_costs_nothing(
    internet: Machines,
) -> None:
    """No port but the hub's two is open anywhere, no machine knows another's address, nothing is plain text."""
    slow = "fault.slow=[0:4,1:4,2:4]"
    settings = ("topology.replicas=3", "topology.here=1", "train.max_steps=120", slow)
    at = (f"sideband.bind={HUB}", f"sideband.port={PORT}")
    launcher = internet.start("hub", "finetune", *TINY, *settings, *at)
    run = internet.run_of("hub", launcher)
    joined = [internet.start(home, "join", member_token(run), "--yes") for home in HOMES]
    wait_for(run, "committed", launcher)
    for process in joined:
        open_doors = [each for pid in descendants(process.pid) for each in doors(pid) if each.kind == "tcp"]
        assert open_doors == [], "a joiner listens at nothing"
    (exchange,) = exchanges(launcher)
    exchange.kill()
    for process in (*joined, launcher):
        ended(process)
    runs = [run, *((internet.folder(home) / "runs" / "latest").resolve() for home in HOMES)]
    assert len({digest(each) for each in runs}) == 1
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["samples"], summary["replayed"]) == (240, 0)
    assert all(row["samples"] > 0 for row in summary["replicas"])
    generations = [event["members"] for event in events(run) if event["event"] == "generation"]
    assert generations == [[0, 1, 2]], "the exchange's death is nobody's: no group is formed anew"
    assert any("another one goes on" in str(event.get("text", event)) for event in events(run))
    assert not any(event["event"] == "refused" for event in events(run)), "an honest fleet is never refused"
