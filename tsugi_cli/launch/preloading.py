"""When the fork server begins: as soon as the settings are known, so that it imports while data are prepared."""

from __future__ import annotations

import os

from tsugi_cli.config.spec import RunSpec
from tsugi_cli.hosts.role import without_ranks
from tsugi_cli.preload.client import ForkServer

from .plan import import_env


def preload(forks: ForkServer, spec: RunSpec) -> None:
    """Begin to import what the replicas of a run need on this machine."""
    forks.start({**without_ranks(os.environ), **import_env(spec)})


def preload_own(forks: ForkServer, spec: RunSpec) -> None:
    """The same for a launcher, if it starts any replicas."""
    if spec.topology.here != 0:
        preload(forks, spec)
