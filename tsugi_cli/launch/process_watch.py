"""Detects killed workers at once: torchrun's agent takes a second or more to end, and the other replicas wait."""

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
"""Variable of a worker's environment that names the file for its traceback."""
UNKNOWN = "its worker was killed"


@dataclass(frozen=True)
class _Watched:
    pid: int
    handle: int
    """A pidfd: it means this process, even when its number is used again."""
    error_file: Path | None


class ProcessWatch:
    """Watches the workers of replicas. Without pidfds in the kernel it watches nothing, and agents' ends must do."""

    def __init__(self) -> None:
        self._watched: dict[int, _Watched] = {}
        self._over: set[int] = set()
        """Process ids that have ended. Their agents may still list them."""

    def watch(self, replica: int, pid: int) -> None:
        """Watch this process from now on; it replaces an earlier one of the replica."""
        known = self._watched.get(replica)
        if pid in self._over or (known is not None and known.pid == pid):
            return
        self.forget(replica)
        with suppress(OSError, AttributeError):
            self._watched[replica] = _Watched(pid, os.pidfd_open(pid), _error_file(pid))

    def forget(self, replica: int) -> None:
        """Watch this replica no more."""
        known = self._watched.pop(replica, None)
        if known is not None:
            os.close(known.handle)

    def wait(self, timeout_s: float) -> None:
        """Wait until a watched process has ended, or for this time."""
        self._ended(timeout_s)

    def killed(self) -> dict[int, str]:
        """Return replicas whose process was killed, each with the reason, once. One that left a traceback is not
        among them."""
        ended = self._ended(0.0)
        found = {}
        for replica, watched in list(self._watched.items()):
            if watched.handle in ended:
                # Read while it is a zombie: once its agent has collected it, nobody knows the signal.
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
