"""Links of the sideband, and a whole run, over a wire that is cut, cut one way, lossy or late."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.faults import books
from tests.faults.fleet import TINY, Fleet
from tests.faults.injector import ROOT, Injector
from tests.faults.wire import HERE, THERE, NoNamespace, Weather, Wire
from tests.support import await_true

pytestmark = [pytest.mark.process, pytest.mark.timeout(400)]

WAIT_S = 150.0
STEPS = 60

HUB = """
import sys, time
from pathlib import Path
from tests.support import hub_plan
from tsugi_kpool.sideband import keys
from tsugi_kpool.sideband.keys import RunKeys
from tsugi_kpool.sideband.hub.server import HubServer
hub = HubServer(hub_plan(replicas=1), RunKeys.generate(), lambda told: None)
keys.save(hub.start(sys.argv[1], 0), Path(sys.argv[2]))
sys.stdin.read()
hub.stop()
"""
ASKER = """
import sys
from pathlib import Path
from tsugi_kpool.core.messages import StatusRequest
from tsugi_kpool.sideband import keys
from tsugi_kpool.sideband.observer import Observer
with Observer(keys.load(Path(sys.argv[1]))) as hub:
    while True:
        hub.send(StatusRequest())
        if hub.receive(0.2) is not None:
            print("answered", flush=True)
"""


@pytest.fixture
def wire() -> Iterator[Wire]:
    laid = Wire()
    try:
        laid.lay()
    except NoNamespace as error:
        laid.tear()
        pytest.skip(str(error))
    yield laid
    laid.tear()


def test_an_observer_is_answered_again_after_a_cut_a_cut_one_way_and_loss(wire, tmp_path):
    keys, answers = tmp_path / "keys.json", tmp_path / "answers"

    def begin(name: str, program: str, *words: str, **more) -> subprocess.Popen[bytes]:
        command = [*wire.inside(name), sys.executable, "-c", program, *words]
        return subprocess.Popen(command, cwd=ROOT, **more)

    def answered() -> int:
        return answers.read_bytes().count(b"answered")

    with begin(wire.here, HUB, HERE, str(keys), stdin=subprocess.PIPE) as hub, answers.open("wb") as file:
        await_true(keys.exists, "the hub's keys", WAIT_S)
        with begin(wire.there, ASKER, str(keys), stdout=file) as asker:
            try:
                await_true(lambda: answered() > 0, "an answer", WAIT_S)
                for weather, fate in (
                    (Weather(cut=(0, 1)), "cut"), (Weather(cut=(1,)), "cut"),
                    (Weather(delay_s=0.05, loss=0.2, bytes_s=1e5), "lost"),
                ):  # fmt: skip
                    before = wire.counts[fate]
                    wire.weather = weather
                    await_true(
                        lambda fate=fate, before=before: wire.counts[fate] > before, f"{weather} fires", WAIT_S
                    )
                    wire.heal()
                    count = answered()
                    await_true(lambda count=count: answered() > count, f"an answer after {weather}", WAIT_S)
            finally:
                asker.kill()
                hub.stdin.close()


def test_a_run_over_a_link_that_is_late_and_loses_packets_trains_to_its_end(wire, tmp_path):
    """50 ms each way and one packet in a hundred lost, from the first packet on: every book is whole."""
    wire.weather = Weather(delay_s=0.05, loss=0.01)
    at = (f"sideband.bind={HERE}", f"topology.address={HERE}", "topology.here=1", "topology.trust_network=true")
    fleet = Fleet(
        tmp_path / "run",
        (*TINY, "topology.replicas=2", f"train.max_steps={STEPS}", "fault.step_s=[0:0.1,1:0.1]", *at),
        Injector(tmp_path / "faults", ()),
        prefix=wire.inside(wire.here),
    )
    try:
        joined = fleet.join("there", f"topology.address={THERE}", prefix=wire.inside(wire.there))
        code, said = fleet.end()
        assert code == 0, said
        assert joined.wait(WAIT_S) == 0
    finally:
        fleet.stop()
    found = books.check(fleet.paths, fleet.traps.folder)
    assert (found.samples, found.processed, found.replayed, found.lost_tokens) == (2 * STEPS, 2 * STEPS, 0, 0)
    assert found.versions > 0
    assert {each.replica for each in books.traces(fleet.traps.folder).values() if each.samples} == {0, 1}
    assert wire.counts["lost"] > 0
