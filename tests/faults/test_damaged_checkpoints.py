"""A checkpoint is torn, another one has a flipped bit, and all is killed: the run goes on from the one before."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from tests.faults.disk import once
from tests.faults.fleet import TINY, WAIT_S, Fleet
from tests.faults.injector import Injector
from tests.faults.points import Fault, Kind, State
from tests.support import end_with, processes_of
from tsugi_cli.record.resumed import resumed_of
from tsugi_kpool.checkpoints import Store
from tsugi_kpool.core.checkpoint import ANCHORS

pytestmark = [pytest.mark.process, pytest.mark.timeout(400)]

STEPS = 80
WORDS = (*TINY, "topology.replicas=1", f"train.max_steps={STEPS}", "kpool.k=8", "fault.slow=[0:8]")
OFTEN = ("train.checkpoint.every_s=0.2", "train.checkpoint.keep=3")
AT = (0, 8, State.COMMITTED)


def test_a_torn_and_a_flipped_checkpoint_are_named_and_skipped(tmp_path):
    damaged: list[str] = []

    def root() -> Path:
        return (tmp_path / "runs" / "latest" / "checkpoints").resolve()

    def newest_whole() -> Path:
        os.kill(fleet.launcher.pid, signal.SIGSTOP)  # or it would finish another one meanwhile
        found = Store(root()).newest().newest
        assert found is not None
        damaged.append(found.path.name)
        return found.path

    def tear() -> None:
        file = newest_whole() / ANCHORS
        os.truncate(file, file.stat().st_size // 2)

    def flip() -> None:
        file = newest_whole() / ANCHORS
        data = bytearray(file.read_bytes())
        data[-7] ^= 0x10  # in a value, where safetensors looks at nothing
        file.write_bytes(data)

    def kill_all() -> None:
        end_with(signal.SIGKILL, fleet.launcher.pid, *processes_of(root().parent))

    def three_whole() -> bool:
        """One for each kind of damage, and one to go on from."""
        return len(list(root().glob("v*"))) >= 3

    acts = {Kind.TORN: tear, Kind.FLIPPED: flip, Kind.KILL_ALL: kill_all}
    traps = Injector(
        tmp_path / "faults",
        tuple(Fault(kind, *AT, when_ready=True) for kind in acts),
        {kind: once(act) for kind, act in acts.items()},
        three_whole,
    )
    fleet = Fleet(tmp_path, (*WORDS, *OFTEN), traps)
    try:
        fleet.launcher.wait(WAIT_S)
        traps.check()
    finally:
        fleet.stop()
    torn, flipped = damaged
    left = Store(fleet.paths.checkpoints).newest()
    assert left.newest is not None
    assert left.newest.path.name < flipped < torn
    second = Fleet(tmp_path / "again", (f"resume={fleet.paths.root}", "fault.slow=[]"))
    try:
        code, said = second.end()
    finally:
        second.stop()
    assert code == 0, said
    whole = said.replace("\n", " ")
    assert f"{torn} is skipped, it is not whole: {ANCHORS} has " in whole
    assert f"{flipped} is skipped, it is not whole: {ANCHORS} was changed" in whole
    resumed = resumed_of(second.paths)
    assert resumed is not None
    assert resumed.checkpoint == left.newest.path.name
    summary = json.loads(second.paths.summary.read_text())
    assert (summary["outcome"], summary["samples_total"]) == ("finished", STEPS * 2)
    ended = Store(second.paths.checkpoints).newest()
    assert ended.skipped == ()
    assert ended.newest is not None
    assert ended.newest.manifest.done == ((0, STEPS * 2),)
