"""What must change nothing: clocks that are set, strangers, hostile frames. And a held interpreter is no life."""

from __future__ import annotations

import os

import pytest
import zmq

from tests.faults import books
from tests.faults.disk import once
from tests.faults.fleet import TINY, Fleet
from tests.faults.injector import Injector
from tests.faults.points import HUB, Fault, Kind, State
from tests.support import await_no_process_of, send_unheard
from tsugi_kpool.core.messages import StatusRequest, encode
from tsugi_kpool.core.records import GenerationOpened, Left, RoundCommitted
from tsugi_kpool.sideband import keys as sideband_keys
from tsugi_kpool.sideband.keys import RunKeys
from tsugi_kpool.sideband.sockets import link_socket

pytestmark = [pytest.mark.process, pytest.mark.timeout(400)]

STEPS = 240
WORDS = (*TINY, "topology.replicas=3", f"train.max_steps={STEPS}", "train.lease_ahead_s=0")
SLOW = ("fault.slow=[0:6,1:6,2:6]", "topology.max_restarts=0")
HELD_S = 600.0
"""Longer than the run."""
FAULTS = (
    Fault(Kind.CLOCK_BACK, 0, 3, State.FIRED),
    Fault(Kind.CLOCK_AHEAD, 1, 3, State.REDUCED),
    Fault(Kind.CLOCK_BACK, HUB, 2, State.WRITING_COMMIT),
    Fault(Kind.STRANGERS, 1, 6, State.GATHERING),
    Fault(Kind.FRAMES, 0, 6, State.REPORTED),
    Fault(Kind.HOLD, 2, 9, State.FIRED, HELD_S),
)


def test_clocks_strangers_and_frames_change_nothing_and_a_held_interpreter_is_no_life(tmp_path):
    context, sockets = zmq.Context(), list[zmq.Socket[bytes]]()

    def knock() -> None:
        """With a key that nobody has made for this run."""
        keys, stranger = sideband_keys.load(fleet.paths.keys), RunKeys.generate()
        forged = RunKeys(keys.hub_public, "", stranger.member_public, stranger.member_secret, keys.address)
        sockets.append(link_socket(context, forged))
        send_unheard(sockets[-1], encode(StatusRequest()))

    def babble() -> None:
        """With a member's key."""
        sockets.append(link_socket(context, sideband_keys.load(fleet.paths.keys)))
        for size in (0, 1, 30, 3000):
            sockets[-1].send(os.urandom(size))

    def refused_all(refused: dict[str, int]) -> bool:
        return refused.get("key", 0) >= 1 and refused.get("malformed", 0) >= 4

    acts = {Kind.STRANGERS: once(knock), Kind.FRAMES: once(babble)}
    fleet = Fleet(tmp_path, (*WORDS, *SLOW), Injector(tmp_path / "faults", FAULTS, acts))
    try:
        fleet.await_true(lambda: any(isinstance(each, Left) for each in fleet.records()), "the held one to leave")
        # A stranger's and a babbler's sockets connect in their own time: it may come after the held one has left.
        fleet.await_true(lambda: refused_all(fleet.status().refused), "strangers and frames to be counted")
        code, said = fleet.end()
    finally:
        fleet.stop()
        context.destroy(linger=0)
    assert code == 0, said
    fleet.traps.check()
    records = fleet.records()
    assert [each.members for each in records if isinstance(each, GenerationOpened)] == [(0, 1, 2), (0, 1)]
    (left,) = (each for each in records if isinstance(each, Left) and each.reason)
    assert (left.replica, "silent for 4 s" in left.reason) == (2, True), left
    opened = max(n for n, each in enumerate(records) if isinstance(each, GenerationOpened))
    assert any(isinstance(each, RoundCommitted) for each in records[opened:]), "rounds went on"
    assert books.check(fleet.paths, fleet.traps.folder).samples == STEPS * 2
    await_no_process_of(fleet.paths.root)
