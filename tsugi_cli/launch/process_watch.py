"""Workers that were killed, noticed at once: torchrun's agent takes a second or more to end, and the others wait."""

from __future__ import annotations

import os
import select
import signal
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tsugi_kpool.system import ended_by, environment_of

ERROR_FILE = b"TORCHELASTIC_ERROR_FILE="
"""In a worker's environment: where it leaves its own traceback before it ends by itself."""
UNKNOWN = "its worker was killed"


@dataclass(frozen=True)
class _Watched:
    pid: int
    handle: int
    """A pidfd: it names this process, whoever gets its number later."""
    error_file: Path | None


class ProcessWatch:
    """The processes of some replicas. Where the kernel has no pidfd nothing is watched, and the agents' ends tell."""

    def __init__(self) -> None:
        self._watched: dict[int, _Watched] = {}
        self._over: set[int] = set()
        """Process ids of those that have ended: workers of their agents still, until these have noticed."""

    def watch(self, replica: int, pid: int) -> None:
        """From now on; another process in its place takes over."""
        known = self._watched.get(replica)
        if pid in self._over or (known is not None and known.pid == pid):
            return
        self.forget(replica)
        with suppress(OSError, AttributeError):
            self._watched[replica] = _Watched(pid, os.pidfd_open(pid), _error_file(pid))

    def forget(self, replica: int) -> None:
        """Whatever becomes of it."""
        known = self._watched.pop(replica, None)
        if known is not None:
            os.close(known.handle)

    def wait(self, timeout_s: float) -> None:
        """Return when one has ended, or after this time."""
        self._ended(timeout_s)

    def killed(self) -> dict[int, str]:
        """Those that have ended without a word, each with the reason; said once."""
        ended = self._ended(0.0)
        found = {}
        for replica, watched in list(self._watched.items()):
            if watched.handle in ended:
                number = ended_by(watched.pid)
                raised = watched.error_file is not None and watched.error_file.exists()
                if not raised and number != 0:
                    found[replica] = UNKNOWN if number is None else f"{UNKNOWN} ({_name(number)})"
                self._over.add(watched.pid)
                self.forget(replica)
        return found

    def close(self) -> None:
        for replica in list(self._watched):
            self.forget(replica)

    def _ended(self, timeout_s: float) -> set[int]:
        if not self._watched:
            time.sleep(timeout_s)
            return set()
        poll = select.poll()
        for watched in self._watched.values():
            poll.register(watched.handle, select.POLLIN)
        return {handle for handle, _ in poll.poll(timeout_s * 1000)}


def _error_file(pid: int) -> Path | None:
    variables = environment_of(pid)
    named = [each.removeprefix(ERROR_FILE) for each in variables or () if each.startswith(ERROR_FILE)]
    return Path(os.fsdecode(named[0])) if named else None


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
