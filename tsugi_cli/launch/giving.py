"""What a replica that `tsugi join` brings has written of checkpoints, given to the hub's machine."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path

from tsugi_kpool.checkpoints import Store
from tsugi_kpool.core.checkpoint import ANCHORS, part_name, sorted_names
from tsugi_kpool.core.messages import CheckpointOffer, CheckpointSettled, DataPart, DataRequest, Message
from tsugi_kpool.core.parcels import PART_BYTES
from tsugi_kpool.sideband.observer import Observer

OFFER_S = 1.0
"""Period of offering it again."""
SILENT_S = 20.0
"""A hub that asks for nothing for so long takes nothing."""
WAIT_S = 0.1


class Giving:
    """`turn` now and then, `hear` what comes from the hub, `finish` at the end.

    Args:
        hub: The connection to it.
        ticket: Of the place that the replica has.
        replica: Which one it is.
        root: The run's folder of checkpoints on this machine.
    """

    def __init__(self, hub: Observer, ticket: str, replica: int, root: Path) -> None:
        self._hub, self._ticket = hub, ticket
        self._store, self._files = Store(root), (ANCHORS, part_name(replica))
        self._name = ""
        """The one that is offered; empty: none."""
        self._offered_s = self._heard_s = 0.0

    def turn(self, now_s: float) -> None:
        """Offer the newest one that the replica has written whole; older ones are deleted."""
        name = self._newest()
        if name != self._name:
            self._name, self._heard_s, self._offered_s = name, now_s, 0.0
        if name and now_s - self._offered_s >= OFFER_S:
            self._offered_s = now_s
            self._hub.send(CheckpointOffer(self._ticket, name))

    def hear(self, message: Message) -> None:
        """Give the part that is asked for; delete what is not wanted any more."""
        if isinstance(message, CheckpointSettled) and message.name == self._name:
            self._drop(self._name)
            self._name = ""
        elif isinstance(message, DataRequest) and message.ticket == self._ticket:
            name, _, file = message.file.partition("/")
            if name and name == self._name and file in self._files:
                self._heard_s = time.monotonic()
                self._give(message, self._store.scratch(name) / file)

    def finish(self, stopped: Callable[[], bool]) -> None:
        """The replica has ended: give what it has written last, until the hub has it or `stopped`."""
        self.turn(time.monotonic())
        while self._name and not stopped() and time.monotonic() - self._heard_s < SILENT_S:
            if (message := self._hub.receive(WAIT_S)) is not None:
                self.hear(message)
            self.turn(time.monotonic())
        self._store.sweep()

    def _give(self, asked: DataRequest, path: Path) -> None:
        try:
            with path.open("rb", buffering=0) as file:
                file.seek(asked.start)
                part = file.read(PART_BYTES)
        except (OSError, OverflowError):
            return
        self._hub.send(DataPart(asked.file, asked.start, part))

    def _newest(self) -> str:
        """Return the newest one that is whole, and delete those before it; empty when there is none."""
        try:
            folders = [path for path in self._store.root.glob(".*.tmp") if path.is_dir()]
        except OSError:
            return ""
        names = [path.name.removeprefix(".").removesuffix(".tmp") for path in folders]
        ordered = sorted_names(names)
        whole = [name for name in ordered if self._whole(name)]
        if not whole:
            return ""
        for name in ordered[: ordered.index(whole[-1])]:
            self._drop(name)
        return whole[-1]

    def _whole(self, name: str) -> bool:
        return all((self._store.scratch(name) / file).exists() for file in self._files)

    def _drop(self, name: str) -> None:
        shutil.rmtree(self._store.scratch(name), ignore_errors=True)
