"""The hub dies, freezes, runs out of disk, its clock is set back, in real runs: nothing is lost, nobody waits."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from tests.process.test_finetune import TINY, events, start
from tests.support import await_no_process_of, await_true, free_port, whole_lines
from tsugi_cli.config.compose import read_resolved
from tsugi_cli.finetune import objectives, story
from tsugi_cli.record.run_dir import RunPaths
from tsugi_kpool.core.journal import parse
from tsugi_kpool.core.records import Joined, Leased, RoundCommitted, RoundReduced
from tsugi_kpool.sideband import keys as sideband_keys
from tsugi_kpool.sideband.observer import ask_status

pytestmark = [pytest.mark.process, pytest.mark.timeout(400)]

WAIT_S = 200.0
STEPS = 160
SETTINGS = [*TINY, f"train.max_steps={STEPS}", "fault.slow=[0:6.0,1:6.0]", "evaluate.examples=0"]
SETTINGS += ["train.lease_ahead_s=60"]
"""On a busy machine ten steps may take longer than the usual ten seconds."""
CLOCK_SET_BACK = """
import datetime, os, sys, time
flag, real, real_ns = os.environ["TEST_CLOCK_FLAG"], time.time, time.time_ns
back = lambda: 3600 if os.path.exists(flag) else 0
class SetBack(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return super().now(tz) - datetime.timedelta(seconds=back())
if "hub" in sys.orig_argv:  # replicas import pandas, which takes no other datetime than its own
    time.time = lambda: real() - back()
    time.time_ns = lambda: real_ns() - back() * 10**9
    datetime.datetime = SetBack
"""


class Run:
    """A run whose hub and replicas are processes of this test."""

    def __init__(self, cwd: Path, env: dict[str, str]) -> None:
        self._cwd, self._env = cwd, {**os.environ, **env}
        # The next hub needs the port, which the system would hand out to others while there is no hub.
        self.hub = self._start("-m", "tsugi_cli.app", "hub", *SETTINGS, f"sideband.port={free_port()}")
        await_true((cwd / "runs" / "latest" / "sideband" / "keys.json").exists, "the hub's keys")
        self.paths = RunPaths((cwd / "runs" / "latest").resolve())
        self.workers: list[subprocess.Popen[str]] = []

    def start_worker(self, replica: int) -> None:
        run = ("--run-dir", str(self.paths.root), "--replica", str(replica))
        self.workers.append(self._start("-m", "tsugi_cli.finetune.worker", *run))

    def start_hub_again(self) -> None:
        self.hub = self._start("-m", "tsugi_cli.app", "hub", "--run", str(self.paths.root))

    def version(self) -> int:
        return ask_status(sideband_keys.load(self.paths.keys), 20.0).version

    def await_rounds(self, more: int) -> None:
        target = self.version() + more
        await_true(lambda: self.version() >= target, f"{more} more rounds")

    def end(self) -> None:
        """The run ends well by itself."""
        for process in (self.hub, *self.workers):
            out, err = process.communicate(timeout=WAIT_S)
            assert process.returncode == 0, out[-2000:] + err[-2000:]

    def kill(self) -> None:
        for process in (self.hub, *self.workers):
            process.kill()
            process.communicate()

    def _start(self, *words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, *words],
            cwd=self._cwd,
            env=self._env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )


@pytest.fixture
def make_run(tmp_path) -> Iterator[Callable[..., Run]]:
    runs = []

    def make(**env: str) -> Run:
        runs.append(Run(tmp_path, env))
        return runs[-1]

    yield make
    for run in runs:
        run.kill()


def metrics(paths: RunPaths) -> list[dict]:
    return whole_lines(paths.metrics)


def committed_a_round(paths: RunPaths) -> bool:
    return any(event["event"] == "committed" for event in events(paths.root))


def check_books(paths: RunPaths) -> None:
    """Every sample was granted and trained on once; versions count up by one, each with one digest on both."""
    records = [entry.record for entry in parse(paths.journal.read_bytes()).entries]
    leases = sorted((each.lease.start, each.lease.stop) for each in records if isinstance(each, Leased))
    ranges = [(start, stop) for start, stop in leases if stop > start]
    assert (ranges[0][0], ranges[-1][1]) == (0, STEPS * 2)
    assert all(before[1] == after[0] for before, after in pairwise(ranges))
    reduced = [each.reduced for each in records if isinstance(each, RoundReduced)]
    commits = [each for each in records if isinstance(each, RoundCommitted)]
    assert [commit.version for commit in commits] == list(range(1, len(commits) + 1))
    for commit in commits:
        digests = {each.replica: each.digest for each in reduced if each.round == commit.round}
        assert digests == dict.fromkeys([0, 1], commit.digest)
    summary = json.loads(paths.summary.read_text())
    assert (summary["samples"], summary["version"]) == (STEPS * 2, len(commits))
    shipped = sum(sum(each.weights) for each in reduced if each.replica == 0)
    assert shipped == summary["tokens"] * 8, "each of the 8 adapters has committed every token once"
    assert len([each for each in records if isinstance(each, Joined)]) == 2, "nobody had to join again"


def test_a_hub_that_is_killed_and_started_again_finishes_the_run(make_run):
    run = make_run()
    for replica in range(2):
        run.start_worker(replica)
    await_true(lambda: committed_a_round(run.paths), "a round")
    await_true(lambda: {each["replica"] for each in metrics(run.paths)} == {0, 1}, "lines of both")
    run.hub.kill()
    run.hub.communicate()
    before = metrics(run.paths)
    time.sleep(10.0)  # the fault's length
    run.start_hub_again()
    run.end()
    check_books(run.paths)
    after = metrics(run.paths)[len(before) :]
    for replica in range(2):
        last = max(each["steps"] for each in before if each["replica"] == replica)
        first = next(each["steps"] for each in after if each["replica"] == replica)
        assert first > last + 3, "what the next hub hears first was trained while there was none"


def test_the_launcher_is_killed_and_a_hub_alone_takes_over(tmp_path):
    """Its replicas train on without it, and end well once they have been told to."""
    launcher = start("finetune", *SETTINGS, f"sideband.port={free_port()}", cwd=tmp_path)
    paths = RunPaths(tmp_path / "runs" / "latest")
    await_true(lambda: committed_a_round(paths), "a round")
    paths = RunPaths(paths.root.resolve())
    launcher.kill()
    launcher.communicate()
    hub = start("hub", "--run", str(paths.root), cwd=tmp_path)
    out, err = hub.communicate(timeout=WAIT_S)
    assert hub.returncode == 0, out + err
    check_books(paths)
    await_no_process_of(paths.root, WAIT_S)


def test_training_goes_on_while_the_hub_is_frozen(make_run, monkeypatch):
    """Replica 0 trains in this process, which so counts its steps itself."""
    run, steps, original = make_run(), [0], objectives.supervised_loss

    def counted(model, *batch):
        steps[0] += model.training
        return original(model, *batch)

    monkeypatch.setattr(objectives, "supervised_loss", counted)
    run.start_worker(1)
    replica = threading.Thread(target=story.finetune, args=(read_resolved(run.paths), run.paths, 0), daemon=True)
    replica.start()
    await_true(lambda: committed_a_round(run.paths), "a round")
    run.hub.send_signal(signal.SIGSTOP)
    try:
        before = steps[0]
        await_true(lambda: steps[0] >= before + 10, "ten steps without a hub")
    finally:
        run.hub.send_signal(signal.SIGCONT)
    run.end()
    replica.join(WAIT_S)
    assert steps[0] == json.loads(run.paths.summary.read_text())["replicas"][0]["steps"]
    check_books(run.paths)


def test_a_full_disk_and_a_clock_set_back_under_the_hub_change_nothing(make_run, tmp_path):
    """Neither journal nor events nor metrics can grow: rounds go on, and the journal is whole when there is room."""
    (tmp_path / "sitecustomize.py").write_text(CLOCK_SET_BACK)
    flag = tmp_path / "set-back"
    run = make_run(PYTHONPATH=str(tmp_path), TEST_CLOCK_FLAG=str(flag))
    for replica in range(2):
        run.start_worker(replica)
    await_true(lambda: committed_a_round(run.paths), "a round")
    behind = run.paths.journal.with_name("hub.journal.behind")
    room = resource.prlimit(run.hub.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(run.hub.pid, resource.RLIMIT_FSIZE, (1, room[1]))
    await_true(behind.exists, "the journal's other name")
    flag.touch()
    run.await_rounds(3)
    resource.prlimit(run.hub.pid, resource.RLIMIT_FSIZE, room)
    await_true(lambda: not behind.exists(), "a whole journal")
    run.end()
    check_books(run.paths)
    times = [event["time"] for event in events(run.paths.root)]
    assert min(times[1:]) < times[0], "the clock was set back"
    told = sum(event["event"] == "committed" for event in events(run.paths.root))
    assert told < json.loads(run.paths.summary.read_text())["version"], "the disk was full under events.jsonl, too"
