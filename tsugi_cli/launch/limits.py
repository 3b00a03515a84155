"""The limit of open files: enough for a run's replicas, and more where the machine allows it."""

from __future__ import annotations

import resource
import sys
from contextlib import suppress

from tsugi_kpool.errors import MachineError

ALONE, EACH = 32, 4
"""Open files of a launcher with its hub (25, and some for a moment), and of each replica: its log, its connection,
and its process watch."""
PLENTY = 1 << 16
"""Limit that is set where it is allowed. It is no higher, because some libraries count up to it."""


def files_needed(replicas: int) -> int:
    """Return how many files a launcher may have open at once."""
    return ALONE + EACH * replicas


def open_enough(replicas: int) -> None:
    """Raise the soft limit where the hard one allows it; child processes inherit it.

    Raises:
        MachineError: it is too few. A run would fail in the middle of something else.
    """
    soft, hard = (_count(limit) for limit in resource.getrlimit(resource.RLIMIT_NOFILE))
    needed = files_needed(replicas)
    wanted = min(hard, max(soft, needed, PLENTY))
    if wanted > soft:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
            soft = wanted
    if soft < needed:
        text = f"{replicas} replicas take up to {needed} open files, and this process may have {soft}"
        raise MachineError(f"{text}: ulimit -n {needed}")


def _count(limit: int) -> int:
    return sys.maxsize if limit == resource.RLIM_INFINITY else limit
