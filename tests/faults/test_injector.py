"""The injector itself: a fault that did not fire fails its test, damage is found, and a killed process is noticed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.injector import Injector, NotFired
from tests.faults.inside import Trap
from tests.faults.points import READY, Fault, Kind, State
from tests.support import await_true
from tsugi_cli.launch.process_watch import ProcessWatch

KILLS = (Fault(Kind.KILL, 0, 1, State.REDUCED), Fault(Kind.KILL, 1, 2, State.FIRED))
TRAPPED = """
import sys
from pathlib import Path
from tests.faults.inside import Trap
from tests.faults.points import State
trap = Trap(Path(sys.argv[1]), 1)
for trap.step in range(4):
    trap.reach(State.REDUCED)
    trap.reach(State.FIRED)
    print(trap.step, flush=True)
"""


def test_a_fault_fires_once_at_its_step_and_state_and_one_that_did_not_is_named(tmp_path):
    injector = Injector(tmp_path, KILLS)
    command = [sys.executable, "-c", TRAPPED, str(tmp_path)]
    ended = [subprocess.run(command, env=injector.env(), capture_output=True, text=True, check=False) for _ in "ab"]
    assert [(each.returncode, each.stdout.split()) for each in ended] == [
        (-signal.SIGKILL, ["0", "1"]),
        (0, ["0", "1", "2", "3"]),
    ]
    assert [fired.fault for fired in injector.fired.values()] == [KILLS[1]]
    with pytest.raises(NotFired, match=r"SIGKILL at \(replica 0, step 1, reduced\)$"):
        injector.check()


def test_a_fault_may_wait_until_the_run_is_ready_for_it(tmp_path):
    ready = [False]
    injector = Injector(tmp_path, (Fault(Kind.HOLD, 1, 1, State.STEP, when_ready=True),), ready=lambda: ready[0])
    trap = Trap(tmp_path, 1)
    injector.start()
    try:
        trap.reach(State.STEP, 5)
        assert injector.fired == {}
        ready[0] = True
        await_true((tmp_path / READY).exists, "word of it")
        trap.reach(State.STEP, 6)
    finally:
        injector.stop()
    injector.check()


@pytest.mark.parametrize("told", [False, True])
def test_a_worker_that_was_killed_is_noticed_at_once_and_one_that_ended_by_itself_is_not(tmp_path, told):
    """`told`: it has left its own traceback, as one that raised does."""
    error = tmp_path / "error.json"
    if told:
        error.write_text("{}")
    env = {**os.environ, "TORCHELASTIC_ERROR_FILE": str(error)}
    process_watch = ProcessWatch()
    program = [sys.executable, "-c", "input()"]
    with subprocess.Popen(program, env=env, stdin=subprocess.PIPE) as killed:
        with subprocess.Popen(program, env=env, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL) as ended:
            for replica, process in enumerate((killed, ended)):
                process_watch.watch(replica, process.pid)
            assert process_watch.killed() == {}
            ended.stdin.close()  # EOFError
            process_watch.wait(30.0)
            assert process_watch.killed() == {}
        killed.kill()
        process_watch.wait(30.0)
        assert process_watch.killed() == ({} if told else {0: "its worker was killed (SIGKILL)"})
        process_watch.watch(
            0, killed.pid
        )  # whoever started it has not noticed yet: it is still a worker of its agent
        assert process_watch.killed() == {}, "said once"
    assert process_watch.killed() == {}
    before = set(Path("/proc/self/fd").iterdir())
    process_watch.close()
    assert len(set(Path("/proc/self/fd").iterdir())) <= len(before)
