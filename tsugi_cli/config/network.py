"""What the settings of machines and the ways between them must fulfil: addresses, trust, keys and timeouts."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from typing import Any

from tsugi_cli.hosts import machines
from tsugi_kpool.sideband.addresses import hub_address, is_host, is_ip, is_loopback
from tsugi_kpool.sideband.token import MOST_ADDRESSES

from . import data_plane


def _address(address: str | None) -> list[str]:
    if address is None or is_host(address):
        return []
    return [f"topology.address must be null, an IPv4 or IPv6 address of this machine, or its name, found {address!r}"]


def _trust(
    asked: str, here: int | None, replicas: int, spare: int, address: str | None, bind: str, trusted: bool,
    insecure: bool, mode: Any,
) -> list[str]:  # fmt: skip
    """Between machines replicas listen at ports that ask nobody for a key: no machine does that unasked."""
    apart = spare > 0 or (here is not None and here < replicas)
    reached = address or bind
    if data_plane.choose(asked, here, replicas, spare, address, bind, trusted, insecure, mode) == data_plane.EXCHANGE:
        return []
    if trusted or not apart or not is_host(reached) or is_loopback(reached):
        return []
    again = data_plane.choose("auto", here, replicas, spare, address, bind, trusted, insecure, mode)
    way_out = (
        ", or take topology.data_plane=exchange, where they listen nowhere" if again == data_plane.EXCHANGE else ""
    )
    return [
        "topology.trust_network must be true where replicas join from other machines: they listen to each other on "
        f"that network ({reached}) without asking for a key. What they send is sealed, but whoever reaches it "
        "can break or hold up their connections. Trust it that far, or put the machines into a tunnel such as "
        f"WireGuard and trust that{way_out}"
    ]


def _bind(bind: str) -> list[str]:
    # Numbers only: ZeroMQ binds no host names.
    if is_ip(bind):
        return []
    allowed = "an IPv4 or IPv6 address of this machine, or 0.0.0.0 or :: for all of them"
    return [f"sideband.bind must be {allowed}, found {bind!r}"]


def _metrics_bind(bind: str) -> list[str]:
    if is_ip(bind):
        return []
    return [f"sideband.metrics_bind must be an IPv4 or IPv6 address of this machine, found {bind!r}"]


def _insecure(insecure: bool, keys: str | None) -> list[str]:
    if insecure and keys is not None:
        return ["sideband.insecure=true uses no keys, but sideband.keys names some"]
    return []


def _hosts(hosts: list[str] | None, ssh: str) -> list[str]:
    try:
        named = bool(shlex.split(ssh))
    except ValueError:
        named = False
    wrong = [] if named else [f'topology.ssh must be a command, such as "ssh -p 2222", found {ssh!r}']
    return machines.faults(hosts) + wrong


def _reached_at(reached_at: list[str]) -> list[str]:
    found = [
        f"sideband.reached_at: {each!r} is neither HOST nor HOST:PORT; an IPv6 address stands in brackets"
        for each in reached_at
        if hub_address(each, 1) is None
    ]
    if len(reached_at) >= MOST_ADDRESSES:
        found.append(f"sideband.reached_at must not name more than {MOST_ADDRESSES - 1}, found {len(reached_at)}")
    return found


def _beat(beat_s: float, hub_timeout_s: float) -> list[str]:
    if 0 < hub_timeout_s <= beat_s:
        return [f"sideband.hub_timeout_s must exceed sideband.beat_s, found {hub_timeout_s} <= {beat_s}"]
    return []


def _silent(beat_s: float, silent_timeout_s: float) -> list[str]:
    if beat_s > 0 and 0 < silent_timeout_s < 3 * beat_s:
        found = f"found {silent_timeout_s} with beats every {beat_s}"
        return [f"topology.silent_timeout_s must be at least three times sideband.beat_s, {found}"]
    return []


NETWORK_RULES: tuple[tuple[tuple[str, ...], Callable[..., list[str]]], ...] = (
    (("topology.address",), _address),
    (("topology.hosts", "topology.ssh"), _hosts),
    (data_plane.KEYS, _trust),
    ((*data_plane.KEYS, "kpool.reduce"), data_plane.unused),
    (("topology.data_plane", "kpool.mode", "sideband.insecure"), data_plane.impossible),
    (("sideband.bind",), _bind),
    (("sideband.metrics_bind",), _metrics_bind),
    (("sideband.reached_at",), _reached_at),
    (("sideband.insecure", "sideband.keys"), _insecure),
    (("sideband.beat_s", "sideband.hub_timeout_s"), _beat),
    (("sideband.beat_s", "topology.silent_timeout_s"), _silent),
)
"""The settings that a rule reads, and the rule: a text for everything that is wrong."""
