"""Processes of ours that run `tsugi join -`, here or by ssh on other machines: started, watched and ended."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tsugi_cli.signals import deaf

from .leash import STOP

END_S = 30.0
"""Time to write adapters after the run's end."""
STOP_S = 5.0
"""Time that `stop` has, each of the two times."""
TAIL_BYTES = 4096


@dataclass(frozen=True)
class Joiner:
    """A command that runs `tsugi join -`."""

    name: str
    argv: tuple[str, ...]
    log: Path
    """Everything that it writes."""
    environ: Mapping[str, str] | None = None
    """Its whole environment; None: ours."""


@dataclass(frozen=True)
class Ended:
    """A joiner that has ended."""

    joiner: Joiner
    code: int
    words: str
    """The end of what it has written."""


class Joiners:
    """Owns the processes. The token goes to their standard input, which stays open as a leash."""

    def __init__(self, joiners: Sequence[Joiner]) -> None:
        self._joiners = tuple(joiners)
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._told: set[str] = set()

    def start(self, token: str) -> None:
        """Start all of them."""
        for joiner in self._joiners:
            joiner.log.parent.mkdir(parents=True, exist_ok=True)
            # A session of its own: Ctrl-C reaches the launcher alone, which ends all of them in order.
            with deaf(), joiner.log.open("ab") as log:
                process = subprocess.Popen(
                    joiner.argv,
                    env=joiner.environ,
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            self._processes[joiner.name] = process
            _write(process, f"{token}\n".encode())

    def running(self) -> list[str]:
        """Return the names of those that have not ended."""
        return [name for name, process in self._processes.items() if process.poll() is None]

    def ended(self) -> list[Ended]:
        """Return those that have ended and were not returned before."""
        found = []
        for joiner in self._joiners:
            process = self._processes.get(joiner.name)
            if process is None or process.poll() is None or joiner.name in self._told:
                continue
            self._told.add(joiner.name)
            found.append(Ended(joiner, process.returncode, _tail(joiner.log)))
        return found

    def ask_to_stop(self) -> None:
        """Tell all what Ctrl-C tells."""
        for name in self.running():
            _write(self._processes[name], STOP)

    def stop(self, grace_s: float = END_S) -> None:
        """Wait until all have ended; who has not in time is told to stop, twice, and then killed."""
        for patience_s in (grace_s, STOP_S, STOP_S):
            if self._wait(patience_s):
                break
            self.ask_to_stop()
        for process in self._processes.values():
            if process.poll() is None:
                process.kill()
            process.wait()
            if process.stdin is not None:
                with suppress(OSError):
                    process.stdin.close()

    def _wait(self, timeout_s: float) -> bool:
        deadline_s = time.monotonic() + timeout_s
        for process in self._processes.values():
            with suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline_s - time.monotonic()))
        return not self.running()


def _write(process: subprocess.Popen[bytes], text: bytes) -> None:
    if process.stdin is not None:
        with suppress(OSError, ValueError):  # it has ended: its exit code says why
            process.stdin.write(text)
            process.stdin.flush()


def _tail(log: Path) -> str:
    with suppress(OSError), log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - TAIL_BYTES))
        return file.read().decode("utf-8", "replace")
    return ""
