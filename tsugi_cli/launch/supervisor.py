"""The supervisor of processes: it starts, watches and ends them, by their own ids, and touches no others."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.metadata import entry_points
from pathlib import Path
from typing import IO

from tsugi_cli.hosts.role import without_ranks
from tsugi_cli.preload.client import ForkServer
from tsugi_cli.preload.forked import Process
from tsugi_cli.record.run_dir import RunPaths
from tsugi_cli.signals import deaf
from tsugi_kpool.errors import MachineError
from tsugi_kpool.system import children_of

from .failure import Failure, read_failure
from .plan import Agent

TERM_GRACE_S = 8.0
"""Time that torchrun has to end its workers."""
END = signal.SIGHUP
"""Signal on which a torchrun agent ends its workers, and they end themselves."""
COMPLETE_TURN_S = 0.2
"""Period of checking whether a preparing process is still wanted."""


class Supervisor:
    """One torchrun agent per replica, each the leader of its own process group.

    Args:
        agents: What is to run.
        paths: Where logs and errors go.
        forks: Agents are forked from it where it can; else, and without one, they are started anew.
    """

    def __init__(self, agents: tuple[Agent, ...], paths: RunPaths, forks: ForkServer | None = None) -> None:
        self._agents, self._paths, self._forks = agents, paths, forks
        self._processes: dict[int, Process] = {}
        self._due: list[Agent] = []
        """To be started when the fork server is ready."""
        self._logs: list[IO[bytes]] = []
        self._seen: set[int] = set()

    def start(self) -> None:
        """Start every agent, at once or in the turns that follow; output goes to its replica's log.

        Raises:
            MachineError: this installation is incomplete.
        """
        check_rendezvous()
        self._due = list(self._agents)
        self.turn()

    @property
    def starting(self) -> bool:
        """Whether agents wait for the fork server."""
        return bool(self._due)

    def turn(self) -> None:
        """Start the agents that wait, if the fork server is ready, or never will be."""
        if not self._due or (self._forks is not None and self._forks.importing()):
            return
        due, self._due = self._due, []
        for agent in due:
            self._start(agent)

    def restart(self, replica: int) -> None:
        """Start a new agent for a replica whose agent has ended."""
        # Before the start: an old file would be taken for the new agent's failure.
        self._paths.error(replica).unlink(missing_ok=True)
        self._seen.discard(replica)
        self._start(next(agent for agent in self._agents if agent.replica == replica))

    def _start(self, agent: Agent) -> None:
        log = _open_log(self._paths.log(agent.replica))
        self._logs.append(log)
        # A session of its own: Ctrl-C reaches the launcher alone, which ends the fleet in order.
        with deaf():
            env = {**without_ranks(os.environ), **agent.env}
            forked = self._forks and self._forks.fork(agent.argv, env, log.fileno(), agent.workers)
            self._processes[agent.replica] = forked or subprocess.Popen(
                agent.argv,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def fallen(self) -> list[Failure]:
        """Return the failures that have not been returned before."""
        news = [replica for replica in self.failed() if replica not in self._seen]
        self._seen.update(news)
        return [self._failure(replica)[1] for replica in news]

    def kill(self, replica: int) -> None:
        """Kill a replica, which may be frozen and obey nothing."""
        process = self._processes.get(replica)
        if process is not None and process.poll() is None:
            for pid in [*children_of(process.pid), process.pid]:
                _signal_group(pid, signal.SIGKILL)

    def workers(self, replica: int) -> list[int]:
        """Return the process ids of a replica's workers here; none when its agent has ended, or is on another
        machine."""
        process = self._processes.get(replica)
        return [] if process is None or process.poll() is not None else children_of(process.pid)

    def running(self) -> list[int]:
        """Replicas whose agent has not ended, or is about to be started."""
        return [*(agent.replica for agent in self._due), *self._alive()]

    def _alive(self) -> list[int]:
        return [replica for replica, process in self._processes.items() if process.poll() is None]

    def failed(self) -> list[int]:
        """Replicas whose agent has ended with an error."""
        return [replica for replica, process in self._processes.items() if process.poll() not in (None, 0)]

    def wait(self, timeout_s: float) -> bool:
        """Wait until all have ended; returns false when some have not in time."""
        deadline_s = time.monotonic() + timeout_s
        for process in self._processes.values():
            try:
                process.wait(max(0.0, deadline_s - time.monotonic()))
            except subprocess.TimeoutExpired:
                return False
        return True

    def stop(self) -> None:
        """End all running agents: with a signal, after a grace period with SIGKILL to the whole process group."""
        self._due = []
        # Listed before the signal: an agent that has ended no longer names its workers.
        orphans = [pid for replica in self._alive() for pid in children_of(self._processes[replica].pid)]
        self._signal(END)
        if not self.wait(TERM_GRACE_S):
            self._signal(signal.SIGKILL)
            for pid in orphans:
                _signal_group(pid, signal.SIGKILL)
            self.wait(TERM_GRACE_S)
        # An agent that was killed may leave its worker; the group is ours, so this reaches nobody else.
        for process in self._processes.values():
            _signal_group(process.pid, signal.SIGKILL)
        for log in self._logs:
            log.close()

    def failure(self, replica: int | None = None) -> Failure | None:
        """Return the earliest failure by an error of its own, by torchrun's time stamps; without one, how this
        replica ended."""
        found = [self._failure(each) for each in self.failed()]
        own = [(when_s, failure) for when_s, failure in found if failure.own]
        if own:
            return min(own, key=lambda item: (item[0], item[1].replica))[1]
        return next((failure for _, failure in found if failure.replica == replica), None)

    def _failure(self, replica: int) -> tuple[float, Failure]:
        return read_failure(self._paths, replica, self._processes[replica].returncode or 0)

    def _signal(self, number: signal.Signals) -> None:
        for replica in self._alive():
            if number is signal.SIGKILL:
                _signal_group(self._processes[replica].pid, number)
            else:
                self._processes[replica].send_signal(number)


def complete(
    command: Sequence[str], timeout_s: float, stopped: Callable[[], bool] = lambda: False
) -> tuple[int | None, str]:
    """Run a process of ours; returns (exit code, its stderr). The code is None when it was stopped.

    It gets a session of its own, because signals of our terminal are ours to handle: Ctrl-C would put its traceback
    in place of the reason of a failure, and a closed terminal would end it while we go on.

    Raises:
        MachineError: it was not done in time.
    """
    deadline_s = time.monotonic() + timeout_s
    with deaf():
        process = subprocess.Popen(
            command,
            env=without_ranks(os.environ),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
    try:
        while not stopped():
            with suppress(subprocess.TimeoutExpired):
                said = process.communicate(timeout=COMPLETE_TURN_S)[1]
                return process.returncode, said
            if time.monotonic() > deadline_s:
                raise MachineError(f"not done after {timeout_s:g} s: {' '.join(command)}")
        return None, ""
    finally:
        if process.poll() is None:
            _signal_group(process.pid, signal.SIGKILL)
            process.communicate()


def check_rendezvous() -> None:
    """Check that torchrun finds our rendezvous; otherwise every agent would fail with torchrun's own text.

    Raises:
        MachineError: torchrun would not find our rendezvous: Tsugi was installed before it had one.
    """
    if not entry_points(group="torchrun.handlers", name="tsugi"):
        raise MachineError("torchrun does not find Tsugi's rendezvous: install Tsugi again (pip install -e .)")


def _open_log(path: Path) -> IO[bytes]:
    """Open a log; without room for it the replica starts all the same."""
    try:
        return path.open("ab")
    except OSError:
        return Path(os.devnull).open("ab")


def _signal_group(pid: int, number: signal.Signals) -> None:
    try:
        os.killpg(pid, number)
    except (ProcessLookupError, PermissionError):
        return
