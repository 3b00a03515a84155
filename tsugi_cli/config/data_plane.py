"""How adapters travel between replicas (`topology.data_plane`): what `auto` takes, and what cannot be. Pure.

`auto` takes the exchange where replicas come from other machines, and the group where all are on this one. Who says
that the network between the machines is trusted (`topology.trust_network`) says that replicas reach each other there,
and keeps the group: what each of them sends then does not pass the hub's link.
"""

from __future__ import annotations

from typing import Any

from tsugi_kpool.core.settings import Mode, Reduce
from tsugi_kpool.sideband.addresses import is_loopback

from .spec import RunSpec

GROUP, EXCHANGE = "group", "exchange"
KEYS = (
    *("topology.data_plane", "topology.here", "topology.replicas", "topology.spare", "topology.address"),
    *("sideband.bind", "topology.trust_network", "sideband.insecure", "kpool.mode"),
)
"""What the choice depends on, in the order of `choose`."""


def choose(
    asked: str,
    here: int | None,
    replicas: int,
    spare: int,
    address: str | None,
    bind: str,
    trusted: bool,
    insecure: bool,
    mode: Any,
) -> str:
    """Return the data plane of a run: `group` or `exchange`."""
    if asked != "auto":
        return asked
    possible = mode == Mode.LOCAL and not insecure
    return EXCHANGE if possible and not trusted and leaves(here, replicas, spare, address, bind) else GROUP


def leaves(here: int | None, replicas: int, spare: int, address: str | None, bind: str) -> bool:
    """Return whether what replicas send each other leaves this machine."""
    apart = spare > 0 or (here is not None and here < replicas)
    return apart and not is_loopback(address or bind)


def data_plane(spec: RunSpec) -> str:
    """Return the data plane of this run."""
    place, side = spec.topology, spec.sideband
    return choose(
        place.data_plane, place.here, place.replicas, place.spare, place.address, side.bind, place.trust_network,
        side.insecure, spec.kpool.mode,
    )  # fmt: skip


def impossible(asked: str, mode: Any, insecure: bool) -> list[str]:
    """Return what is wrong with an exchange that was asked for."""
    if asked != EXCHANGE:
        return []
    found = []
    if mode != Mode.LOCAL:
        found.append(
            f"topology.data_plane=exchange needs kpool.mode=local, found {mode}: it averages changes and keeps what "
            "coding them has lost, which the fleet's optimizer of gradient mode would take for a gradient"
        )
    if insecure:
        found.append("topology.data_plane=exchange needs keys: it cannot be used with sideband.insecure=true")
    return found


def unused(*values: Any) -> list[str]:
    """Return what is wrong with two-stage rounds where no replica sums for others; the values are those of `choose`,
    and `kpool.reduce` after them."""
    *place, reduce = values
    if reduce != Reduce.SCATTER or choose(*place) != EXCHANGE:
        return []
    return [
        "kpool.reduce=scatter has replicas sum for each other, but here an exchange sums for all: take "
        "kpool.reduce=auto, or topology.data_plane=group"
    ]
