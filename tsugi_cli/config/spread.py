"""What `topology.hosts` means for the other settings: how many replicas there are, and where the hub listens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tsugi_cli.hosts.machines import machines
from tsugi_cli.hosts.role import NO_SCHEDULER, role_of
from tsugi_kpool.errors import ConfigError

OPEN = "0.0.0.0"


def adopt(tree: Any, values: Mapping[str, str], environ: Mapping[str, str], resumes: bool) -> list[str]:
    """Write into a configuration what follows from its `topology.hosts`; returns what is wrong.

    Args:
        tree: The configuration; changed.
        values: What the user has typed, by key: it is kept.
        environ: Where a scheduler says what it has started.
        resumes: The configuration is an earlier run's, which has said where its hub listens.
    """
    if not isinstance(tree, dict):
        return []
    topology, sideband = tree.get("topology"), tree.get("sideband")
    if not isinstance(topology, dict) or not isinstance(sideband, dict):
        return []
    hosts = topology.get("hosts", [])
    if hosts == [] or not (hosts is None or isinstance(hosts, list)):
        return []
    here = topology.get("here")
    here = 1 if here is None else here
    if not isinstance(here, int) or here < 0:
        return []
    try:
        total = here * _tasks(environ) if hosts is None else here + _others(hosts)
    except ConfigError as error:
        return list(error.problems)
    found = _contradicted(topology.get("replicas"), values, total)
    topology["here"], topology["replicas"] = here, total
    if "sideband.bind" not in values and not resumes:
        sideband["bind"] = OPEN
    return found


def _tasks(environ: Mapping[str, str]) -> int:
    role = role_of(environ)
    if role is None:
        raise ConfigError([NO_SCHEDULER])
    return role.world


def _others(hosts: list[Any]) -> int:
    return sum(each.replicas for each in machines([str(each) for each in hosts]))


def _contradicted(replicas: Any, values: Mapping[str, str], total: int) -> list[str]:
    if "topology.replicas" not in values or replicas == total:
        return []
    return [f"topology.replicas={replicas}, but topology.hosts and topology.here make {total}; leave it out"]
