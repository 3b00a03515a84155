"""`OwnHub`: the hub of a run without a launcher, in replica 0's process."""

from __future__ import annotations

import logging
import time
from pathlib import Path

from tsugi_kpool.core.effects import HubPlan, Told
from tsugi_kpool.core.events import Discarded, Event, Left
from tsugi_kpool.core.hub.hub import Hub
from tsugi_kpool.core.messages import FleetStatus
from tsugi_kpool.sideband.hub.server import HubServer
from tsugi_kpool.sideband.keys import RunKeys

from . import rendezvous

WARNED = {Left: "has left, the others train on", Discarded: "throws away what it has buffered"}

log = logging.getLogger("tsugi_kpool")


class OwnHub:
    """The hub in replica 0's process, and its key file.

    Args:
        plan: What the hub must know of the run.
        address: Where to listen, tcp://host:port.
        host: Our machine as the others reach it.
        path: The key file.
        reuse: Whether keys that lie there are to be used, and stay: they were copied to all machines beforehand.

    Raises:
        MachineError: the address cannot be listened at, or the file cannot be written.
        SidebandError: the file that lies there cannot be used.
    """

    def __init__(self, plan: HubPlan, address: str, host: str, path: Path, reuse: bool) -> None:
        self._path, self._kept = path, reuse and path.exists()
        keys = rendezvous.own_keys(path, reuse)
        self._server = HubServer(plan, keys, _log)
        keys = self._server.start(*rendezvous.bindable(address))
        try:
            self.keys: RunKeys = rendezvous.publish(keys, host, path)
        except BaseException:
            self._server.stop()
            raise

    def status(self) -> FleetStatus:
        """How the fleet is."""
        return self._server.status()

    def end(self, wait_s: float, good: bool) -> None:
        """Stop; before that let the others take their leave (`good`) or hear of the failure."""
        deadline_s = time.monotonic() + wait_s
        while self._server.alive and time.monotonic() < deadline_s and not (good and self._server.ask(_ended)):
            time.sleep(0.02)
        if not self._kept:
            self._path.unlink(missing_ok=True)
        self._server.stop()


def _ended(hub: Hub) -> bool:
    return hub.ended


def _log(told: Told) -> None:
    if isinstance(told, Left | Discarded):
        log.warning("replica %s %s: %s", told.replica, WARNED[type(told)], told.reason)
    elif isinstance(told, Event):
        log.debug("%s %s", told.name, told.data)
