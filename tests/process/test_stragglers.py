"""Real runs in which a replica turns slow: it is named, with the moment and the cause. Nothing asserts a timing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import whole_lines

from .test_finetune import TINY, WAIT_S, events, start, tsugi

pytestmark = [pytest.mark.process, pytest.mark.timeout(400)]
ENDLESS = [*TINY, "train.max_steps=1000000"]


def wait_until(holds: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Until it holds; the run must still be there."""
    deadline_s = time.monotonic() + WAIT_S
    while not holds():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline_s, "not in time"
        time.sleep(0.1)


def slow(run: Path, replica: int) -> list[dict]:
    return [e for e in events(run) if e["event"] == "slow" and e["replica"] == replica]


def named(run: Path, replica: int, cause: str, evidence: str = "") -> dict | None:
    """The newest time that it was named so. It may have been slow before, for another reason on a busy machine."""
    found = [e for e in slow(run, replica) if e["cause"] == cause and evidence in "".join(e["evidence"])]
    return found[-1] if found else None


def dated(event: dict | None) -> bool:
    """Whether it is named with the moment: it may be slow against the fleet before its own change is found."""
    return event is not None and event["since_s"] is not None


def steps(run: Path, replica: int) -> int:
    records = whole_lines(run / "metrics.jsonl")
    return max((each["steps"] for each in records if each["replica"] == replica), default=0)


def end(process: subprocess.Popen[str]) -> None:
    """Ctrl-C, and wait for the end."""
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=WAIT_S)


def test_replicas_that_turn_slow_are_named_with_moment_and_cause(tmp_path):
    """An injected sleep is compute: the thread neither ran nor waited for a core. Late micro-batches are data."""
    faults = ['fault.slow=["1:8.0@8s"]', 'fault.data_wait=["0:1.0@16s"]']
    process = start("finetune", *ENDLESS, *faults, cwd=tmp_path)
    run = tmp_path / "runs" / "latest"
    try:
        wait_until(lambda: dated(named(run, 1, "compute", "slept")) and dated(named(run, 0, "data")), process)
        status = tsugi("sideband", "status", cwd=tmp_path)
        end(process)
    finally:
        process.kill()
    slept, starved = named(run, 1, "compute", "slept"), named(run, 0, "data")
    assert slept["part"] == "step"
    assert starved["part"] == "data wait"
    for event in (slept, starved):
        assert event["since_s"] > 0, "it was fast before, and the moment is known"
        assert event["after_s"] > 1.4 * event["before_s"]
    assert status.returncode == 10
    assert "x slow since" in status.stdout
    assert "cause: data" in " ".join(status.stdout.split())
    assert json.loads((run / "summary.json").read_text())["outcome"] == "interrupted"


@pytest.mark.nightly  # it needs a core that nothing else uses; beside another test's runs it took four times as long
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs Linux")
def test_a_replica_whose_core_others_take_is_named_with_that_cause(tmp_path):
    """Its training thread is put onto one core; then three busy loops are put there too."""
    process = start("finetune", *ENDLESS, cwd=tmp_path)
    run = tmp_path / "runs" / "latest"
    hogs: list[subprocess.Popen[bytes]] = []
    core = max(os.sched_getaffinity(0))
    try:
        wait_until(lambda: steps(run, 1) > 0, process)
        pid = next(e["pid"] for e in events(run) if e["event"] == "joined" and e["replica"] == 1)
        os.sched_setaffinity(pid, {core})
        settled = steps(run, 1) + 100
        wait_until(lambda: steps(run, 1) >= settled, process)
        for _ in range(3):
            hogs.append(subprocess.Popen([sys.executable, "-c", "while True: pass"]))
            os.sched_setaffinity(hogs[-1].pid, {core})
        wait_until(lambda: named(run, 1, "compute", "waited for a core") is not None, process)
        end(process)
    finally:
        process.kill()
        for hog in hogs:
            hog.kill()
            hog.wait(10)
    assert named(run, 1, "compute", "waited for a core")["part"] == "step"
