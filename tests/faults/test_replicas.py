"""Replicas of real runs die or freeze in the middle of a round: the others finish, and nothing is silently lost."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import pytest

from tests.faults import books
from tests.faults.fleet import TINY, Fleet
from tests.faults.injector import Injector
from tests.faults.points import Fault, Kind, State
from tests.support import await_no_process_of
from tsugi_kpool.core.records import GenerationOpened, Joined, Left, RoundCommitted, RoundReduced

pytestmark = [pytest.mark.process, pytest.mark.timeout(400)]

STEPS = 240
SETTINGS = (*TINY, "topology.replicas=3", f"train.max_steps={STEPS}", "train.lease_ahead_s=0")
QUICK, BACK = "fault.slow=[0:4,1:4,2:4]", "fault.slow=[0:12,1:12,2:12]"
"""BACK: so slow that a process that is started again finds the others at work."""

PACKED = ("data.packing=true", "data.max_tokens=400")
"""Leases count rows of several samples."""

Begin = Callable[..., Fleet]


@pytest.fixture
def begin(tmp_path) -> Iterator[Begin]:
    fleets: list[Fleet] = []

    def make(fault: Fault, *settings: str) -> Fleet:
        fleets.append(Fleet(tmp_path, (*SETTINGS, *settings), Injector(tmp_path / "faults", (fault,))))
        return fleets[-1]

    yield make
    for fleet in fleets:
        fleet.stop()


def check(fleet: Fleet) -> str:
    """It ended well, the fault has fired, the books are right, nothing is left; returns what was said."""
    code, said = fleet.end()
    assert code == 0, said
    assert fleet.injector is not None
    fleet.injector.check()
    assert books.check(fleet.paths, fleet.injector.folder).samples == STEPS * 2
    await_no_process_of(fleet.paths.root)
    return said


def members(fleet: Fleet) -> list[tuple[int, ...]]:
    return [each.members for each in fleet.records() if isinstance(each, GenerationOpened)]


def test_a_replica_that_is_killed_leaves_and_the_others_finish(begin):
    """It has reduced a round and told so, and waits for what becomes of it: nobody's collective breaks."""
    fleet = begin(Fault(Kind.KILL, 1, 8, State.REPORTED), QUICK, "topology.max_restarts=0", *PACKED)
    said = check(fleet)
    (left,) = fleet.told("left")
    assert "its worker was killed" in left["reason"]
    assert "replica 1 left: its worker was killed" in said
    assert members(fleet) == [(0, 1, 2), (0, 2)]
    opened = max(n for n, each in enumerate(fleet.records()) if isinstance(each, GenerationOpened))
    assert any(isinstance(each, RoundCommitted) for each in fleet.records()[opened:]), "rounds went on"
    assert (fleet.paths.adapter / "adapter_model.safetensors").exists()
    assert json.loads(fleet.paths.summary.read_text())["replayed"] == left["again"]


def test_over_an_exchange_a_replica_that_is_killed_while_parts_come_in_ends_no_round(begin):
    """The others' parts are on their way, its own is not. That round is committed without it, and the next generation
    opens after it."""
    exchange = "topology.data_plane=exchange"
    fleet = begin(Fault(Kind.KILL, 1, 8, State.FIRED), QUICK, "topology.max_restarts=0", exchange)
    check(fleet)
    assert fleet.told("aborted") == [], "a death costs its own share, not the round"
    assert members(fleet) == [(0, 1, 2), (0, 2)]
    records = fleet.records()
    _, again = (n for n, each in enumerate(records) if isinstance(each, GenerationOpened))
    without = {
        each.reduced.round for each in records if isinstance(each, RoundReduced) and each.reduced.counted == (0, 2)
    }
    committed = {each.round for each in records[:again] if isinstance(each, RoundCommitted)}
    assert without & committed, "the round that it was killed in, of the generation that it was a member of"


def test_a_replica_whose_agent_was_killed_is_started_again_and_joins(begin):
    fleet = begin(Fault(Kind.AGENT, 0, 5, State.FIRED), BACK)
    check(fleet)
    assert members(fleet) == [(0, 1, 2), (1, 2), (0, 1, 2)]
    assert sum(isinstance(each, Joined) for each in fleet.records()) == 4


def test_a_replica_that_freezes_does_not_hold_the_others_up(begin):
    fleet = begin(Fault(Kind.STOP, 2, 5, State.FIRED), BACK)
    check(fleet)
    assert "silent for 4 s" in next(each for each in fleet.records() if isinstance(each, Left)).reason
    first, without, *_ = members(fleet)
    assert (first, without) == ((0, 1, 2), (0, 1))
    assert members(fleet)[-1] == (0, 1, 2), "another process is in its place"


def test_without_a_quorum_the_run_pauses_and_ends_with_its_own_code(begin):
    quorum = ("topology.min_replicas=3", "topology.quorum_timeout_s=2")
    fleet = begin(Fault(Kind.KILL, 1, 5, State.STEP), QUICK, "topology.max_restarts=0", *quorum)
    code, said = fleet.end()
    assert code == 7, said
    assert "2 of at least 3 replicas are left: training pauses" in said
    assert "topology.quorum_timeout_s" in said


def test_a_quorum_that_comes_back_goes_on(begin):
    fleet = begin(Fault(Kind.KILL, 1, 5, State.COMMITTED), BACK, "topology.min_replicas=3")
    check(fleet)
    assert fleet.told("quorum_lost")
    assert fleet.told("quorum_back")
