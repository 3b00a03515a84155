"""Terminals that close, `nohup`, Ctrl-Z and an impatient Ctrl-C: what a run does, in two real runs."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import signal
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.process.test_finetune import TINY, events, tsugi
from tests.support import await_no_process_of, await_true, processes_of

pytestmark = [pytest.mark.process, pytest.mark.timeout(400)]

WAIT_S = 150
HUB_TIMEOUT_S = 2.0
STEPS = 80
"""The run goes on for a while after the stop, in which it trains too, and prints after the window is closed."""
SLOW = ["fault.slow=[0:4.0,1:4.0]", "evaluate.examples=0"]
COMMAND = [sys.executable, "-m", "tsugi_cli.entry", "finetune", *TINY, *SLOW]


def committed(run: Path) -> int:
    return sum(event["event"] == "committed" for event in events(run))


def ignored_signals(pid: int) -> int:
    """As a mask: bit 0 is signal 1. None of a process that has ended meanwhile."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return int(next(line for line in lines if line.startswith("SigIgn:")).split()[1], 16)


@contextmanager
def on_terminal(command: list[str], cwd: Path) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """A process that leads the session of a terminal of its own, and the terminal's other end."""
    leader, follower = pty.openpty()

    def take_terminal() -> None:
        os.setsid()
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    environment = {**os.environ, "TERM": "xterm-256color"}
    process = subprocess.Popen(
        command, cwd=cwd, env=environment, stdin=follower, stdout=follower, stderr=follower, preexec_fn=take_terminal
    )
    os.close(follower)

    def look() -> None:
        with suppress(OSError):  # it is closed
            while os.read(leader, 65_536):
                pass

    threading.Thread(target=look, daemon=True).start()
    try:
        yield process, leader
    finally:
        process.kill()
        process.wait()


def test_a_stopped_launcher_and_a_closed_terminal_cost_a_run_nothing(tmp_path):
    """Stopped for longer than a replica waits for a hub that is gone; then the window is closed."""
    settings = [f"train.max_steps={STEPS}", f"sideband.hub_timeout_s={HUB_TIMEOUT_S}"]
    run = tmp_path / "runs" / "latest"
    with on_terminal([*COMMAND, *settings], tmp_path) as (process, terminal):
        await_true(lambda: committed(run), "a round")
        process.send_signal(signal.SIGSTOP)
        time.sleep(2 * HUB_TIMEOUT_S)  # the fault's length
        before = committed(run)
        process.send_signal(signal.SIGCONT)
        await_true(lambda: committed(run) > before, "a round after the stop")
        assert not (run / "logs" / "console.log").exists()
        os.close(terminal)
        shown = tsugi("console", "--run", str(run), cwd=tmp_path)
        assert process.wait(WAIT_S) == 0
    assert shown.returncode == 0, shown.stderr
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["outcome"], summary["samples"], summary["samples_total"]) == ("finished", 2 * STEPS, 2 * STEPS)
    assert {"left", "fell", "restarted", "failed"}.isdisjoint(event["event"] for event in events(run))
    said = (run / "logs" / "console.log").read_text()
    assert "tsugi console --run" in said.splitlines()[0]
    assert "from peft import PeftModel" in said
    assert (run / "adapter" / "adapter_model.safetensors").exists()
    await_no_process_of(run, WAIT_S)


def test_under_nohup_nobody_reads_and_two_ctrl_c_end_it_at_once(tmp_path):
    """`nohup tsugi finetune | head -1`: it goes on; its processes can be ended though SIGHUP was ignored."""
    run = tmp_path / "runs" / "latest"
    command = ["nohup", *COMMAND, "train.max_steps=100000"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert str((tmp_path / "runs").resolve()) in process.stdout.readline()
        process.stdout.close()
        await_true((run / "logs" / "console.log").exists, "lines in the log")
        await_true(lambda: committed(run), "a round")
        agents = processes_of(run)
        assert len(agents) >= 4, "an agent and a worker for each replica"
        assert [pid for pid in agents if ignored_signals(pid) & 1] == []
        process.send_signal(signal.SIGHUP)
        before = committed(run)
        await_true(lambda: committed(run) > before, "a round after SIGHUP")
        process.send_signal(signal.SIGINT)
        await_true(lambda: "stopping after" in (run / "logs" / "console.log").read_text(), "an answer")
        time.sleep(0.6)  # else it is taken for the same one
        process.send_signal(signal.SIGINT)
        err = process.stderr.read()
        assert process.wait(WAIT_S) == 130, err
    finally:
        process.kill()
    assert "nobody reads this output; the run goes on" in err
    assert "Traceback" not in err
    assert json.loads((run / "summary.json").read_text())["outcome"] == "interrupted"
    await_no_process_of(run)
