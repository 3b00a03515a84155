"""Processes: started, watched, ended. Keeps its own process ids and never touches another's."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from .plan import Agent
from .run_dir import RunPaths
from .signals import deaf
from .signature import signed

TERM_GRACE_S = 8.0
"""torchrun gets this long to end its workers."""
END = signal.SIGHUP
"""What makes a torchrun agent end its workers, and those themselves end at once."""
TRACEBACK_LINES = 12


@dataclass(frozen=True)
class Failure:
    """The first failure of a run."""

    replica: int
    exit_code: int
    text: str
    """The worker's own words: its last traceback lines."""
    log: Path
    worker: int | None = None
    """Which one, in a replica of several."""

    @property
    def who(self) -> str:
        """The replica, and its worker if there are several."""
        return f"replica {self.replica}" + ("" if self.worker is None else f", worker {self.worker},")

    @property
    def reason(self) -> str:
        """The last of its words, in one line."""
        return self.text.splitlines()[-1] if self.text else "no reason is known"


class Supervisor:
    """One torchrun agent per replica, each the leader of its own process group."""

    def __init__(self, agents: tuple[Agent, ...], paths: RunPaths) -> None:
        self._agents, self._paths = agents, paths
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self._logs: list[IO[bytes]] = []

    def start(self) -> None:
        """Start every agent; output goes to its replica's log."""
        for agent in self._agents:
            log = self._paths.log(agent.replica).open("ab")
            self._logs.append(log)
            # A session of its own: Ctrl-C reaches the launcher alone, which ends the fleet in order.
            with deaf():
                self._processes[agent.replica] = subprocess.Popen(
                    agent.argv,
                    env={**os.environ, **agent.env},
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )

    def running(self) -> list[int]:
        """Replicas whose agent has not ended."""
        return [replica for replica, process in self._processes.items() if process.poll() is None]

    def failed(self) -> list[int]:
        """Replicas whose agent has ended with an error."""
        return [replica for replica, process in self._processes.items() if process.poll() not in (None, 0)]

    def wait(self, timeout_s: float) -> bool:
        """Wait until all have ended; false when some have not in time."""
        deadline_s = time.monotonic() + timeout_s
        for process in self._processes.values():
            try:
                process.wait(max(0.0, deadline_s - time.monotonic()))
            except subprocess.TimeoutExpired:
                return False
        return True

    def stop(self) -> None:
        """End what still runs: ask, give it time to obey, then SIGKILL to the whole process group."""
        self._signal(END)
        if not self.wait(TERM_GRACE_S):
            self._signal(signal.SIGKILL)
            self.wait(TERM_GRACE_S)
        # An agent that was killed may leave its worker; the group is ours, so this reaches nobody else.
        for process in self._processes.values():
            _signal_group(process.pid, signal.SIGKILL)
        for log in self._logs:
            log.close()

    def failure(self) -> Failure | None:
        """The failure that came first, by torchrun's own time stamps."""
        found = [(self._error(replica), replica) for replica in self.failed()]
        if not found:
            return None
        (_, text), replica = min(found, key=lambda item: (item[0][0], item[1]))
        code = self._processes[replica].returncode
        text, worker = signed(text or f"exit code {code}, no traceback")
        return Failure(replica, code, text, self._paths.log(replica, worker or 0), worker)

    def _error(self, replica: int) -> tuple[float, str]:
        """(time, traceback tail) of a replica's failure; infinitely late when it left none."""
        try:
            message = json.loads(self._paths.error(replica).read_text(encoding="utf-8"))["message"]
            extra = message.get("extraInfo", {}) if isinstance(message, dict) else {}
            text = extra.get("py_callstack") or (message if isinstance(message, str) else message["message"])
            return float(extra.get("timestamp", "inf")), _tail(str(text))
        except (OSError, ValueError, KeyError, TypeError):
            return float("inf"), _tail(_read_end(self._paths.log(replica)))

    def _signal(self, number: signal.Signals) -> None:
        for replica in self.running():
            if number is signal.SIGKILL:
                _signal_group(self._processes[replica].pid, number)
            else:
                self._processes[replica].send_signal(number)


def _signal_group(pid: int, number: signal.Signals) -> None:
    try:
        os.killpg(pid, number)
    except (ProcessLookupError, PermissionError):
        return


def _tail(text: str) -> str:
    return "\n".join(text.rstrip().splitlines()[-TRACEBACK_LINES:])


def _read_end(path: Path, size: int = 8192) -> str:
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - size))
            return file.read().decode(errors="replace")
    except OSError:
        return ""
