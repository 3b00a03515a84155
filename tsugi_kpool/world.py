"""This process's place in the fleet, from torchrun's variables; the only module that reads them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

from .errors import ConfigError

HIDDEN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE")
"""Variables by which other libraries take the fleet for one data-parallel job."""

STORE = "TSUGI_STORE"
"""Variable in which torchrun's rendezvous backend `tsugi` names the file where a replica's workers meet."""

NAMED = ("TSUGI_REPLICA", "TSUGI_REPLICAS")
"""Variables for one torchrun agent per replica: which replica, of how many."""


@dataclass(frozen=True)
class World:
    """One process's place in the fleet. Every process is one replica."""

    replica: int = 0
    replicas: int = 1
    local_replica: int = 0
    """Our place among the processes that our torchrun agent started."""
    local_replicas: int = 1
    master: str = "127.0.0.1"
    """The machine of replica 0, as torchrun knows it."""
    named: bool = False
    """Whether the replica's number was set: torchrun's variables may then be those of its own workers."""
    run: str = "none"
    """Id that is equal in all processes of a torchrun job and differs between two jobs on one machine."""

    @property
    def one_machine(self) -> bool:
        """Whether one torchrun agent started all replicas."""
        return self.local_replicas == self.replicas


@dataclass(frozen=True)
class WorkerRank:
    """One process's place inside its replica, where every torchrun agent starts one replica."""

    worker: int = 0
    workers: int = 1
    local: int = 0
    """Our place among the replica's workers on this machine."""
    store: str | None = None
    """The file in which they meet; None where another rendezvous has started them."""


def worker_rank(environ: Mapping[str, str] = os.environ) -> WorkerRank:
    """Return a replica's worker from torchrun's variables; without them its only worker."""
    return WorkerRank(
        worker=int(environ.get("RANK", 0)),
        workers=int(environ.get("WORLD_SIZE", 1)),
        local=int(environ.get("LOCAL_RANK", 0)),
        store=environ.get(STORE),
    )


def read(replica: int | None = None, replicas: int | None = None, environ: Mapping[str, str] = os.environ) -> World:
    """torchrun's variables, or a world of one without them; `replica` and `replicas` overrule them.

    So do TSUGI_REPLICA and TSUGI_REPLICAS, where nothing is given: one program can then be started by one torchrun
    agent for each replica.

    Raises:
        ConfigError: only one of the two is given, or they do not fit each other.
    """
    if replica is None and replicas is None:
        replica, replicas = (_number(name, environ) for name in NAMED)
    world = World(
        replica=int(environ.get("RANK", 0)),
        replicas=int(environ.get("WORLD_SIZE", 1)),
        local_replica=int(environ.get("LOCAL_RANK", 0)),
        local_replicas=int(environ.get("LOCAL_WORLD_SIZE", environ.get("WORLD_SIZE", 1))),
        master=environ.get("MASTER_ADDR", "127.0.0.1"),
        run=f"{environ.get('TORCHELASTIC_RUN_ID', 'none')}-{environ.get('MASTER_PORT', 'none')}",
    )
    if replica is None and replicas is None:
        return world
    if replica is None or replicas is None:
        raise ConfigError(["replica and replicas are given together, or neither is"])
    for name, value in (("replica", replica), ("replicas", replicas)):
        if isinstance(value, bool) or not isinstance(value, int):
            raise ConfigError([f"{name} must be a whole number, found {value!r}"])
    if not 0 <= replica < replicas:
        raise ConfigError([f"replica must lie in [0, {replicas - 1}] with replicas={replicas}, found {replica}"])
    return replace(world, replica=replica, replicas=replicas, named=True)


def _number(name: str, environ: Mapping[str, str]) -> int | None:
    text = environ.get(name)
    if text is None:
        return None
    if not text.isascii() or not text.isdigit():
        raise ConfigError([f"{name} must be a whole number, found {text!r}"])
    return int(text)


@contextmanager
def hidden() -> Iterator[None]:
    """Hide inside the block that other processes were started with this one."""
    kept = {name: os.environ.pop(name) for name in HIDDEN if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(kept)
