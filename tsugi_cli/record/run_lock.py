"""The lock of a run directory: it has one launcher at a time. The file names it, and the kernel releases it."""

from __future__ import annotations

import fcntl
import os
import socket
import time
from pathlib import Path

from tsugi_kpool.errors import ConfigError
from tsugi_kpool.foreign import read_plain

from .run_dir import RunPaths

TRIES, PAUSE_S = 5, 0.02
"""Attempts to lock. Whoever only asks for the holder has the lock for some microseconds."""


class RunLock:
    """Keeps other processes from continuing this run, from `take` to `release` or to this process's end.

    On a disk that is full or knows no locks the run goes on without it.
    """

    def __init__(self, paths: RunPaths) -> None:
        self._paths, self._file = paths, -1

    def take(self) -> None:
        """Become the holder.

        Raises:
            ConfigError: another process is.
        """
        try:
            file = os.open(self._paths.lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except OSError:
            return
        if not _locked(file):
            os.close(file)
            raise ConfigError([f"{self._paths.root} is still running: {_written(self._paths.lock)} has it"])
        self._file = file
        _write(file, f"{os.getpid()} {socket.gethostname()}\n")

    def release(self) -> None:
        """Let others have it."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def holder(paths: RunPaths) -> str | None:
    """Return which process holds a run's directory, in words; None when none does, or it cannot be known."""
    try:
        file = os.open(paths.lock, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _written(paths.lock)
    except OSError:
        return None
    finally:
        os.close(file)
    return None


def _locked(file: int) -> bool:
    """Return whether the lock was taken; true where there are no locks."""
    for attempt in range(TRIES):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if attempt + 1 < TRIES:
                time.sleep(PAUSE_S)
        except OSError:
            return True
        else:
            return True
    return False


def _write(file: int, text: str) -> None:
    try:
        os.ftruncate(file, 0)
        os.pwrite(file, text.encode(), 0)
    except OSError:
        return


def _written(path: Path) -> str:
    """Return the holder's name from the lock file."""
    try:
        pid, host = read_plain(path).decode().split()
    except (OSError, ValueError):
        return "another process"
    return f"process {pid}" if host == socket.gethostname() else f"process {pid} on {host}"
