"""`topology.hosts`: how an entry is read. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tsugi_kpool.sideband.addresses import is_host, is_ip

MOST_REPLICAS = 64
"""Of one machine."""
ENTRY = "NAME, USER@NAME or NAME:N for N replicas there; an IPv6 address stands in brackets"
_USER, _HOST = r"(?P<user>[A-Za-z_][A-Za-z0-9_.-]*)@", r"(?P<host>\[[^\]]+\]|[^:@\[\]]+)"
_ENTRY = re.compile(rf"(?:{_USER})?{_HOST}(?::(?P<count>\d{{1,3}}))?")


@dataclass(frozen=True)
class Machine:
    """Another machine of a run."""

    name: str
    """As ssh gets it: a name of ~/.ssh/config, too; perhaps USER@NAME."""
    replicas: int = 1


def machine(entry: str) -> Machine | None:
    """Return what an entry of `topology.hosts` names; None if it is none."""
    found = _ENTRY.fullmatch(entry)
    if found is None:
        return None
    host, count = found["host"], int(found["count"] or 1)
    known = is_ip(host[1:-1]) if host.startswith("[") else is_host(host) or re.fullmatch(r"\w[\w.-]*", host)
    if not known or not 1 <= count <= MOST_REPLICAS:
        return None
    user = f"{found['user']}@" if found["user"] else ""
    return Machine(user + host.strip("[]"), count)


def machines(entries: Sequence[str]) -> tuple[Machine, ...]:
    """Return the machines of entries that the configuration's rules have let through."""
    return tuple(each for entry in entries if (each := machine(entry)) is not None)


def faults(entries: Any) -> list[str]:
    """Return what is wrong with `topology.hosts`."""
    found = [f"topology.hosts: {each!r} is not {ENTRY}" for each in entries or () if machine(each) is None]
    names = [each.name for each in machines(entries or ())]
    twice = sorted({name for name in names if names.count(name) > 1})
    return found + [f"topology.hosts names {name} twice; {name}:2 is for two replicas there" for name in twice]
