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
from tsugi_cli.record.run_dir import RunPaths
from tsugi_kpool.checkpoints import Checkpoint, Found, Store
from tsugi_kpool.core.checkpoint import ANCHORS

pytestmark = [pytest.mark.process, pytest.mark.timeout(400)]

STEPS = 80
WORDS = (*TINY, "topology.replicas=1", f"train.max_steps={STEPS}", "kpool.k=8", "fault.slow=[0:8]")
OFTEN = ("train.checkpoint.every_s=0.2", "train.checkpoint.keep=3")
AT = (0, 8, State.COMMITTED)


class Damage:
    """Damages the newest whole checkpoint of a run, one after the other, and kills all that it has started."""

    def __init__(self, tmp_path: Path) -> None:
        self._runs = tmp_path / "runs"
        self.names: list[str] = []
        """The damaged ones."""
        acts = {Kind.TORN: self._tear, Kind.FLIPPED: self._flip, Kind.KILL_ALL: self._kill_all}
        faults = tuple(Fault(kind, *AT, when_ready=True) for kind in acts)
        waited = {kind: once(act) for kind, act in acts.items()}
        self.traps = Injector(tmp_path / "faults", faults, waited, self._three_whole)
        self.fleet = Fleet(tmp_path, (*WORDS, *OFTEN), self.traps)

    @property
    def _root(self) -> Path:
        return (self._runs / "latest" / "checkpoints").resolve()

    def _three_whole(self) -> bool:
        """One for each kind of damage, and one to go on from."""
        return len(list(self._root.glob("v*"))) >= 3

    def _newest_whole(self) -> Path:
        os.kill(self.fleet.launcher.pid, signal.SIGSTOP)  # or it would finish another one meanwhile
        found = Store(self._root).newest().newest
        assert found is not None
        self.names.append(found.path.name)
        return found.path

    def _tear(self) -> None:
        file = self._newest_whole() / ANCHORS
        os.truncate(file, file.stat().st_size // 2)

    def _flip(self) -> None:
        file = self._newest_whole() / ANCHORS
        data = bytearray(file.read_bytes())
        data[-7] ^= 0x10  # in a value, where safetensors looks at nothing
        file.write_bytes(data)

    def _kill_all(self) -> None:
        end_with(signal.SIGKILL, self.fleet.launcher.pid, *processes_of(self._root.parent))

    def run(self) -> RunPaths:
        """Train until all is killed; returns what is left."""
        try:
            self.fleet.launcher.wait(WAIT_S)
            self.traps.check()
        finally:
            self.fleet.stop()
        return self.fleet.paths


def newest_of(paths: RunPaths) -> tuple[Checkpoint, Found]:
    found = Store(paths.checkpoints).newest()
    assert found.newest is not None
    return found.newest, found


def test_a_torn_and_a_flipped_checkpoint_are_named_and_skipped(tmp_path):
    damage = Damage(tmp_path)
    paths = damage.run()
    torn, flipped = damage.names
    left, _ = newest_of(paths)
    assert left.path.name < flipped < torn
    second = Fleet(tmp_path / "again", (f"resume={paths.root}", "fault.slow=[]"))
    try:
        code, said = second.end()
    finally:
        second.stop()
    assert code == 0, said
    words = said.replace("\n", " ")
    assert f"{torn} is skipped, it is not whole: {ANCHORS} has " in words
    assert f"{flipped} is skipped, it is not whole: {ANCHORS} was changed" in words
    resumed = resumed_of(second.paths)
    assert resumed is not None
    assert resumed.checkpoint == left.path.name
    summary = json.loads(second.paths.summary.read_text())
    assert (summary["outcome"], summary["samples_total"]) == ("finished", STEPS * 2)
    ended, found = newest_of(second.paths)
    assert (ended.manifest.done, found.skipped) == (((0, STEPS * 2),), ())
