"""Replicas of real runs die or freeze in the middle of a round: the others finish, and nothing is silently lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from tests.process.test_finetune import TINY, WAIT_S, events, processes_of, start
from tsugi_cli.run_dir import RunPaths
from tsugi_kpool.core.messages import FleetStatus
from tsugi_kpool.core.records import EpochOpened, Joined, Leased, Left, RoundCommitted, RoundLanded, parse
from tsugi_kpool.sideband import keys as sideband_keys
from tsugi_kpool.sideband.observer import ask_status

pytestmark = [pytest.mark.process, pytest.mark.timeout(240)]

STEPS = 240
SETTINGS = [*TINY, "topology.replicas=3", f"train.max_micro_steps={STEPS}", "evaluate.examples=0"]
SETTINGS += ["train.lease_ahead_s=0", "fault.slow=[0:4,1:4,2:4]"]


class Run:
    """A run of `tsugi finetune` and the processes of its replicas."""

    BACK = "fault.slow=[0:12,1:12,2:12]"
    """So slow that a process that is started again finds the others at work."""

    def __init__(self, cwd: Path, *settings: str) -> None:
        self.launcher = start("finetune", *SETTINGS, *settings, cwd=cwd)
        self.paths = RunPaths(cwd / "runs" / "latest")
        self.await_event("committed")
        self.paths = RunPaths(self.paths.root.resolve())

    def await_event(self, name: str, **facts: object) -> None:
        self.await_true(lambda: any(facts.items() <= each.items() for each in self.told(name)), name)

    def await_true(self, condition: Callable[[], object], what: str) -> None:
        deadline_s = time.monotonic() + WAIT_S
        while not condition():
            assert self.launcher.poll() is None, self.launcher.communicate()
            assert time.monotonic() < deadline_s, f"{what}: not in time"
            time.sleep(0.02)

    def told(self, name: str) -> list[dict]:
        return [each for each in events(self.paths.root) if each["event"] == name]

    def worker(self, replica: int) -> int:
        """The newest process id of a replica's worker."""
        return [each["pid"] for each in self.told("joined") if each["replica"] == replica][-1]

    def status(self) -> FleetStatus:
        return ask_status(sideband_keys.load(self.paths.keys), 20.0)

    def end(self) -> tuple[int, str]:
        """Exit code, and what was said."""
        out, err = self.launcher.communicate(timeout=WAIT_S)
        assert processes_of(self.paths.root) == [], "no orphan"
        return self.launcher.returncode, out + err

    def journal(self, kind: type) -> list:
        entries = parse(self.paths.journal.read_bytes()).entries
        return [each.record for each in entries if isinstance(each.record, kind)]

    def check(self) -> None:
        """Versions count up by one, each with one digest on all its members; every sample was handed out."""
        commits, landed = self.journal(RoundCommitted), [each.landed for each in self.journal(RoundLanded)]
        assert [commit.version for commit in commits] == list(range(1, len(commits) + 1))
        for commit in commits:
            assert {each.digest for each in landed if each.round == commit.round} == {commit.digest}
        epochs = [each.epoch for each in self.journal(EpochOpened)]
        assert all(before < after for before, after in pairwise(epochs))
        covered = {p for each in self.journal(Leased) for p in range(each.lease.start, each.lease.stop)}
        assert covered == set(range(STEPS * 2))
        summary = json.loads(self.paths.summary.read_text())
        assert summary["samples"] == summary["samples_total"] == STEPS * 2


@pytest.fixture
def begin(tmp_path) -> Iterator[Callable[..., Run]]:
    runs: list[subprocess.Popen[str]] = []

    def make(*settings: str) -> Run:
        run = Run(tmp_path, *settings)
        runs.append(run.launcher)
        return run

    yield make
    for launcher in runs:
        if launcher.poll() is None:
            launcher.terminate()
            launcher.communicate(timeout=60)


def test_a_replica_that_is_killed_leaves_and_the_others_finish(begin):
    run = begin("topology.max_restarts=0")
    os.kill(run.worker(1), signal.SIGKILL)
    run.await_event("left", replica=1)
    version = run.status().version
    code, said = run.end()
    assert code == 0, said
    (left,) = run.told("left")
    assert "its worker was killed (SIGKILL)" in left["reason"]
    assert "replica 1 left: its worker was killed (SIGKILL)" in said
    assert [each.members for each in run.journal(EpochOpened)] == [(0, 1, 2), (0, 2)]
    assert len(run.journal(RoundCommitted)) > version, "rounds went on"
    assert (run.paths.adapter / "adapter_model.safetensors").exists()
    summary = json.loads(run.paths.summary.read_text())
    assert summary["replayed"] == left["again"]
    run.check()


def test_a_replica_that_was_killed_is_started_again_and_joins(begin):
    run = begin(Run.BACK)
    before = run.worker(0)
    os.kill(before, signal.SIGKILL)
    run.await_event("left", replica=0)
    run.await_true(lambda: run.worker(0) != before, "another process")
    run.await_true(lambda: run.status().replicas[0].micro_steps > 0, "its first micro-step")
    code, said = run.end()
    assert code == 0, said
    members = [each.members for each in run.journal(EpochOpened)]
    assert members == [(0, 1, 2), (1, 2), (0, 1, 2)]
    assert len(run.journal(Joined)) == 4
    run.check()


def test_a_replica_that_freezes_does_not_hold_the_others_up(begin):
    run = begin(Run.BACK)
    frozen = run.worker(2)
    os.kill(frozen, signal.SIGSTOP)
    run.await_event("left", replica=2)
    version = run.status().version
    run.await_true(lambda: run.status().version > version, "a round without it")
    run.await_true(lambda: run.worker(2) != frozen, "another process in its place")
    code, said = run.end()
    assert code == 0, said
    assert "silent for 4 s" in run.journal(Left)[0].reason
    run.check()


def test_without_a_quorum_the_run_pauses_and_ends_with_its_own_code(begin):
    run = begin("topology.max_restarts=0", "topology.min_replicas=3", "topology.quorum_timeout_s=2")
    os.kill(run.worker(1), signal.SIGKILL)
    run.await_event("quorum_lost")
    code, said = run.end()
    assert code == 7, said
    assert "2 of at least 3 replicas are left: training pauses" in said
    assert "topology.quorum_timeout_s" in said


def test_a_quorum_that_comes_back_goes_on(begin):
    run = begin(Run.BACK, "topology.min_replicas=3")
    os.kill(run.worker(1), signal.SIGKILL)
    run.await_event("quorum_lost")
    run.await_event("quorum_back")
    code, said = run.end()
    assert code == 0, said
    run.check()
