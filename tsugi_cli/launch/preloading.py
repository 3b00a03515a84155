"""The fork server of a launch: it begins with the command, and goes on when the settings are known."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from tsugi_cli.config.spec import RunSpec
from tsugi_cli.hosts.role import without_ranks
from tsugi_cli.preload.client import ForkServer

from .plan import import_env


@contextmanager
def begun() -> Iterator[ForkServer]:
    """A fork server that has begun to import, for as long as the block lasts."""
    with ForkServer() as forks:
        forks.start(without_ranks(os.environ))
        yield forks


def preload(forks: ForkServer | None, spec: RunSpec) -> None:
    """Let it import what the replicas of a run need on this machine, or end it where none trains."""
    if forks is not None and spec.topology.here == 0:
        forks.close()
    elif forks is not None:
        forks.tell(import_env(spec))
