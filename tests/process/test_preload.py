"""Agents and workers that are forked from a preloaded server are what torchrun and the launcher take them for."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import await_true
from tsugi_cli.launch.plan import TORCHRUN, Agent
from tsugi_cli.launch.supervisor import Supervisor
from tsugi_cli.preload.client import ForkServer
from tsugi_cli.preload.forked import Forked
from tsugi_cli.record.run_dir import RunPaths
from tsugi_kpool.system import children_of, environment_of

pytestmark = [pytest.mark.process, pytest.mark.timeout(400)]

WAIT_S = 100
FACTS = """
import json, os, resource, signal, sys
from pathlib import Path
facts = {
    "parent": os.getppid(), "pid": os.getpid(), "group": os.getpgrp(), "session": os.getsid(0), "cwd": os.getcwd(),
    "argv": sys.argv[1:], "told": os.environ["TOLD"], "rank": os.environ.get("LOCAL_RANK"),
    "blocked": [int(each) for each in signal.pthread_sigmask(signal.SIG_BLOCK, ())],
    "hang_up": signal.getsignal(signal.SIGHUP) == signal.SIG_DFL, "torch": "torch" in sys.modules,
    "stdin": sys.stdin.read(), "files": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
}
Path(sys.argv[1], f"{os.environ.get('LOCAL_RANK', 'only')}.json").write_text(json.dumps(facts))
print("said")
sys.exit(int(os.environ.get("CODE", "0")))
"""
WAITS = """
import os, sys, time
from pathlib import Path
Path(sys.argv[1], os.environ["LOCAL_RANK"]).write_text(str(os.getpid()))
time.sleep(600)
"""


@pytest.fixture
def server(tmp_path, monkeypatch) -> Iterator[ForkServer]:
    """One that is ready; what it forks finds the modules `facts` and `waits`."""
    (tmp_path / "facts.py").write_text(FACTS)
    (tmp_path / "waits.py").write_text(WAITS)
    monkeypatch.chdir(tmp_path)
    with ForkServer() as found:
        found.start(dict(os.environ))
        found.tell({})
        await_true(lambda: not found.importing(), "the fork server")
        yield found


def torchrun(module: str, folder: Path, workers: int) -> list[str]:
    return [*TORCHRUN, f"--nproc-per-node={workers}", "--max-restarts=0", "-m", module, str(folder)]


def forked(server: ForkServer, argv: list[str], workers: int = 0, **env: str) -> Forked:
    with Path("log").open("ab") as log:
        child = server.fork(argv, {**os.environ, "TOLD": "this", **env}, log.fileno(), workers)
    assert child is not None
    return child


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_fork_is_the_launchers_own_child_with_its_files_and_signals(server, tmp_path):
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM,))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft - 1, hard))  # since the server began
    try:
        child = forked(server, [sys.executable, "-m", "facts", str(tmp_path)], CODE="3")
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert child.wait(WAIT_S) == 3
    facts = json.loads((tmp_path / "only.json").read_text())
    assert (facts["parent"], facts["pid"]) == (os.getpid(), child.pid)
    assert facts["group"] == facts["session"] == child.pid
    assert facts["blocked"] == sorted(int(each) for each in {*before, signal.SIGTERM})
    assert (facts["cwd"], facts["argv"], facts["stdin"]) == (str(tmp_path), [str(tmp_path)], "")
    assert facts["torch"]
    assert facts["files"] == soft - 1
    assert (tmp_path / "log").read_text() == "said\n"


def test_torchrun_starts_its_workers_as_forks_with_its_variables(server, tmp_path):
    agent = forked(server, torchrun("facts", tmp_path, 2), workers=2)
    assert agent.wait(WAIT_S) == 0, (tmp_path / "log").read_text()
    for rank in ("0", "1"):
        facts = json.loads((tmp_path / f"{rank}.json").read_text())
        assert (facts["parent"], facts["rank"], facts["told"]) == (agent.pid, rank, "this")
        assert facts["group"] == facts["session"] == facts["pid"], "torchrun ends it by its group"
        assert facts["hang_up"], "not the agent's own handler"
        assert facts["torch"], "it was imported before"


def test_a_worker_that_fails_fails_its_agent(server, tmp_path):
    agent = forked(server, torchrun("facts", tmp_path, 1), workers=1, CODE="7")
    assert agent.wait(WAIT_S) == 1
    assert "exitcode  : 7" in (tmp_path / "log").read_text()


def test_proc_shows_what_runs_and_a_killed_server_ends_nobody(server, tmp_path):
    agent = forked(server, torchrun("waits", tmp_path, 1), workers=1, TORCHELASTIC_ERROR_FILE="/nowhere/error")
    await_true((tmp_path / "0").exists, "the worker")
    server.close()
    (worker,) = [pid for pid in children_of(agent.pid) if alive(pid)]
    assert b"waits" in Path(f"/proc/{worker}/cmdline").read_bytes().split(b"\0")
    assert b"--nproc-per-node=1" in Path(f"/proc/{agent.pid}/cmdline").read_bytes().split(b"\0")
    assert b"TORCHELASTIC_ERROR_FILE=/nowhere/error" in (environment_of(agent.pid) or ())
    assert any(each.startswith(b"LOCAL_RANK=") for each in environment_of(worker) or ())
    assert agent.poll() is None
    agent.send_signal(signal.SIGHUP)
    agent.wait(WAIT_S)
    await_true(lambda: not alive(worker), "the worker's end")


def test_an_agent_that_is_killed_leaves_no_fork_that_waits(server, tmp_path):
    agent = forked(server, torchrun("facts", tmp_path, 1), workers=3)
    await_true(lambda: (tmp_path / "0.json").exists(), "the worker that torchrun wants")
    waiting = [pid for pid in children_of(agent.pid) if alive(pid)]
    if agent.poll() is None:
        agent.send_signal(signal.SIGKILL)
    agent.wait(WAIT_S)
    await_true(lambda: not any(map(alive, waiting)), "the end of those it did not want")


@pytest.mark.parametrize("when", ["before", "after"])
def test_without_the_server_agents_are_started_anew(server, tmp_path, when):
    if when == "before":
        assert server._process is not None
        server._process.kill()
        server._process.wait()
    paths = RunPaths(tmp_path)
    paths.logs.mkdir()
    agents = tuple(Agent(each, (sys.executable, "-m", "facts", str(tmp_path)), {"TOLD": "x"}, 0) for each in (0,))
    supervisor = Supervisor(agents, paths, server)
    supervisor.start()
    try:
        if when == "after":
            assert supervisor.wait(WAIT_S)
            server.close()
            supervisor.restart(0)
        assert supervisor.wait(WAIT_S)
        assert supervisor.failed() == []
        assert "said" in paths.log(0).read_text()
    finally:
        supervisor.stop()


def test_a_server_that_hears_nothing_is_given_up(server, tmp_path):
    assert server._process is not None
    assert server._client is not None
    server._process.send_signal(signal.SIGSTOP)
    server._line.settimeout(0.2)
    with Path("log").open("ab") as log:
        assert server.fork([sys.executable, "-m", "facts", str(tmp_path)], dict(os.environ), log.fileno(), 0) is None
    assert server._process.poll() is not None, "what it was asked for is not done later"
    assert not (tmp_path / "only.json").exists()


def test_what_is_no_module_of_this_interpreter_is_not_forked(server):
    assert server.fork(["/bin/true"], {}, 1, 0) is None
    assert server.fork([sys.executable, "-c", "pass"], {}, 1, 0) is None


def test_a_fork_can_be_waited_for_and_killed(server):
    child = forked(server, [sys.executable, "-m", "waits", str(Path.cwd())], LOCAL_RANK="0")
    with pytest.raises(subprocess.TimeoutExpired):
        child.wait(0.05)
    child.send_signal(signal.SIGKILL)
    assert child.wait(WAIT_S) == -signal.SIGKILL
    assert child.poll() == -signal.SIGKILL
