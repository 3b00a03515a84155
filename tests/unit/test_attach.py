"""`tsugi console` as a process: it follows a run of another process to its end, and replays one that has ended."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import time

import pytest

from tests.pictures import SUMMARY, event, fleet
from tests.unit.test_replay import stamp, write
from tests.unit.test_status import hub, join
from tsugi_cli.record.atomic import write_json
from tsugi_cli.record.run_dir import RunPaths
from tsugi_cli.record.status_log import compact

__all__ = ["hub"]
WAIT_S = 60
COMMAND = [sys.executable, "-m", "tsugi_cli.app", "console"]


def record(paths: RunPaths) -> None:
    """A short run, with a slow replica, that has ended."""
    for second in range(0, 31, 2):
        status = fleet(elapsed_s=float(second), samples_done=400 + second, version=second)
        write(paths.status, {"time": stamp(second), **compact(status)})
    write(paths.events, {**event("joined", replica=0, host="node-a", pid=1), "time": stamp(0.5)})
    write(paths.events, {**event("finished", version=30), "time": stamp(30.5)})


def read_until(process: subprocess.Popen[str], text: str) -> str:
    """Lines of its output up to the one that holds this text."""
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if text in line:
            return "".join(lines)
    raise AssertionError(f"no {text!r} in {lines}")


def on_terminal(command: list[str], width: int, height: int) -> str:
    """What a command writes to a terminal of this size."""
    leader, follower = pty.openpty()
    names = {"TERM": "xterm-256color", "COLUMNS": str(width), "LINES": str(height)}
    process = subprocess.Popen(command, stdin=follower, stdout=follower, stderr=follower, env={**os.environ, **names})
    os.close(follower)
    found, deadline_s = b"", time.monotonic() + WAIT_S
    while time.monotonic() < deadline_s:
        if select.select([leader], [], [], 0.5)[0]:
            try:
                found += os.read(leader, 65_536)
            except OSError:  # the other end is closed
                break
    assert process.wait(WAIT_S) == 0, found
    os.close(leader)
    return found.decode()


def test_a_finished_run_is_replayed_as_lines_on_a_pipe(tmp_path):
    paths = RunPaths(tmp_path)
    record(paths)
    write_json(paths.summary, SUMMARY)
    command = [*COMMAND, "--run", str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=WAIT_S, check=False)
    assert result.returncode == 0, result.stderr
    assert "replica 0 joined from node-a" in result.stdout
    assert "430/448 samples" in result.stdout.splitlines()[-1]
    assert "\x1b" not in result.stdout


def test_on_a_terminal_the_last_picture_stays(tmp_path):
    record(RunPaths(tmp_path))
    screen = on_terminal([*COMMAND, "--run", str(tmp_path), "--speed", "60"], 80, 24)
    last = screen[screen.rindex("tsugi") :]
    assert "430/448 samples" in last
    assert "finished at version 30" in last
    assert screen.count("\x1b[?25l") == screen.count("\x1b[?25h") == 1


def test_a_running_run_is_followed_to_its_report(hub, tmp_path):
    paths = RunPaths(tmp_path)
    join(hub)
    write(paths.events, {**event("joined", replica=0, host="of-before", pid=1), "time": stamp(0)})
    with subprocess.Popen([*COMMAND, "--run", str(tmp_path)], stdout=subprocess.PIPE, text=True) as process:
        read_until(process, "samples")
        write(paths.events, {**event("note", text="of now"), "time": stamp(1)})
        assert "of-before" not in read_until(process, "of now")
        write_json(paths.summary, SUMMARY)
        read_until(process, "from peft import PeftModel")
        assert process.wait(WAIT_S) == 0


def test_a_run_that_fails_while_it_is_followed_is_shown_with_its_reason(hub, tmp_path):
    paths = RunPaths(tmp_path)
    join(hub)
    write(paths.events, {**event("joined", replica=0, host="of-before", pid=1), "time": stamp(0)})
    with subprocess.Popen([*COMMAND, "--run", str(tmp_path)], stdout=subprocess.PIPE, text=True) as process:
        read_until(process, "samples")
        write(paths.status, {"time": stamp(2), **compact(fleet(stage="failed", elapsed_s=2.0))})
        write(paths.events, {**event("failed", replica=1, reason="replica 1: no memory"), "time": stamp(2)})
        write_json(paths.summary, {**SUMMARY, "outcome": "failed"})
        shown = read_until(process, "the run has failed")
        assert process.wait(WAIT_S) == 0
    assert "replica 1: no memory" in shown
    assert "failed" in next(line for line in shown.splitlines() if "samples" in line)


def test_ctrl_c_leaves_the_run_alone(hub, tmp_path):
    join(hub)
    write(tmp_path / "events.jsonl", {**event("note", text="x"), "time": stamp(0)})
    with subprocess.Popen([*COMMAND, "--run", str(tmp_path)], stdout=subprocess.PIPE, text=True) as process:
        read_until(process, "samples")
        process.send_signal(signal.SIGINT)
        assert process.wait(WAIT_S) == 130
    assert hub.alive
    assert hub.status().joined == 2


def test_it_ends_when_nobody_reads_it(hub, tmp_path):
    join(hub)
    write(tmp_path / "events.jsonl", {**event("note", text="x"), "time": stamp(0)})
    with subprocess.Popen([*COMMAND, "--run", str(tmp_path)], stdout=subprocess.PIPE, text=True) as process:
        read_until(process, "samples")
        process.stdout.close()
        write(tmp_path / "events.jsonl", {**event("note", text="y"), "time": stamp(1)})
        assert process.wait(WAIT_S) == 0
    assert hub.alive


@pytest.mark.parametrize("run", [["--run", "nowhere"], ["--run", "latest"], []])
def test_no_run_is_one_clear_line(tmp_path, run):
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")}
    result = subprocess.run(
        [*COMMAND, *run], capture_output=True, text=True, timeout=WAIT_S, check=False, cwd=tmp_path, env=environment
    )
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1
    assert json.dumps(result.stdout) == '""'
