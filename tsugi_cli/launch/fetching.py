"""A joiner's data, and the checkpoint that its run goes on from, come from its hub: by hash, in bounded memory."""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from tsugi_cli.config.spec import RunSpec
from tsugi_cli.console.format import size as size_text
from tsugi_cli.data import cache, shipped
from tsugi_cli.data.facts import Facts
from tsugi_cli.record.run_dir import RunPaths
from tsugi_kpool.about import about
from tsugi_kpool.core.bucket import Bucket
from tsugi_kpool.core.checkpoint import MANIFEST
from tsugi_kpool.core.messages import DataPart, DataRequest, Message, Slot, SlotRequest
from tsugi_kpool.core.parcels import LISTING, PART_BYTES, Parcel
from tsugi_kpool.errors import LaunchError, MachineError, SidebandError
from tsugi_kpool.sideband.observer import Observer

from . import taking_over
from .guest import DATA, check_data
from .preparing import Onlooker, Stopped, prepare, prepare_model

ASKS_PER_S, ASKS_AT_ONCE = 120.0, 32
"""Questions to the hub, which hears 200 messages a second of one connection: 6 MB/s."""
HOLD_S = 5.0
"""Period of asking for the place again, which a hub keeps for half a minute."""
WAIT_S = 0.05


class NotNeeded(Exception):
    """The fleet has committed a round: whoever comes now gets its state from a member, not from the checkpoint."""


class Fetch:
    """Fetches one run's data.

    Args:
        hub: The connection that has the place.
        slot: The place.
        onlooker: Who waits for it.
        patience_s: How long a silent hub is waited for; it may be started again.
    """

    def __init__(self, hub: Observer, slot: Slot, onlooker: Onlooker, patience_s: float) -> None:
        self._hub, self._slot, self._onlooker, self._patience_s = hub, slot, onlooker, patience_s
        self._bucket = Bucket(ASKS_PER_S, ASKS_AT_ONCE, time.monotonic())
        self._held_s = self._heard_s = time.monotonic()
        self._for_checkpoint = False

    def run(self) -> Facts:
        """Return the facts of the data, which are an entry of the cache from now on.

        Raises:
            LaunchError: the hub sends something else than it has promised.
            SidebandError: it sends nothing for too long.
            MachineError: the disk does not take them.
            Stopped: the user wants to stop.
        """
        name = shipped.name_of(self._slot.listing)
        if (found := cache.find(name)) is not None:
            return found
        with shipped.receiving(self._slot.listing, self._queue) as scratch:
            if (found := cache.find(name)) is not None:  # whom we have waited for has fetched them
                return found
            files = shipped.read_listing(self._text(LISTING, self._slot.listing, shipped.MOST_LISTING))
            check_room(scratch, files)
            total, done = sum(file.size for file in files.values()), 0
            shown = f"run's data from its hub: {{}} of {size_text(total)}"
            for name, file in files.items():
                self._file(name, scratch / "entry" / name, file, shown, done)
                done += file.size
            for path in (scratch / "entry").iterdir():
                if path.name not in files:
                    path.unlink()
            return shipped.publish(self._slot.listing, scratch)

    def checkpoint(self, paths: RunPaths) -> None:
        """Fetch what our replica needs of the checkpoint that the run goes on from, into its run directory; nothing
        if the fleet goes on from it meanwhile, and may delete it.

        Raises: as `run`.
        """
        self._for_checkpoint = True
        try:
            self._fetch_checkpoint(paths, self._slot.resumed)
        except NotNeeded:
            shutil.rmtree(paths.checkpoints, ignore_errors=True)

    def _fetch_checkpoint(self, paths: RunPaths, address: str) -> None:
        manifest = taking_over.read_manifest(
            self._text(taking_over.RESUMED + MANIFEST, address, taking_over.MOST_MANIFEST)
        )
        folder, files = taking_over.folder_of(paths, manifest), taking_over.wanted_of(manifest, self._slot.replica)
        total, done = sum(each.bytes for each in files.values()), 0
        shown = f"checkpoint that the run goes on from: {{}} of {size_text(total)}"
        try:
            if total > (free := shutil.disk_usage(paths.root).free):
                raise MachineError(
                    f"the checkpoint needs {size_text(total)} in {paths.root}: {size_text(free)} are free"
                )
            folder.mkdir(parents=True, exist_ok=True)
            for name, facts in files.items():
                file = shipped.File(facts.bytes, facts.sha256)
                self._file(taking_over.RESUMED + name, folder / name, file, shown, done)
                done += facts.bytes
            taking_over.note(paths, manifest)
        except OSError as error:
            raise MachineError(f"cannot keep the checkpoint in {folder}: {error.strerror or error}") from error

    def _text(self, name: str, address: str, most: int) -> bytes:
        """Ask for what describes the files, which is verified by its address."""
        collected = bytearray()
        while True:
            part = self._part(name, len(collected))
            collected += part
            if hashlib.sha256(collected).hexdigest() == address:
                return bytes(collected)
            if len(part) < PART_BYTES or len(collected) > most:
                raise LaunchError(shipped.NOT_OURS.format("the listing is not the one that was promised"))

    def _part(self, file: str, start: int) -> bytes:
        parcel = Parcel(start + PART_BYTES, start)
        while True:
            self._ask(file, parcel)
            message = self._heard()
            if isinstance(message, DataPart) and (message.file, message.start) == (file, start):
                return message.data

    def _file(self, name: str, path: Path, file: shipped.File, shown: str, done: int) -> None:
        """Fetch a file, from where an earlier attempt was cut off, and verify it.

        Args:
            name: Under which the hub has it.
            path: Where it goes.
            file: What it must be.
            shown: What the user sees, with a place for the bytes that are here.
            done: Bytes of the files before it.
        """
        have = path.stat().st_size if path.exists() else 0
        parcel = Parcel(file.size, have if have <= file.size else 0)
        with path.open("r+b" if parcel.written else "wb") as out:
            out.seek(parcel.written)
            while not parcel.whole:
                self._ask(name, parcel)
                message = self._heard()
                if isinstance(message, DataPart) and message.file == name:
                    out.write(parcel.take(message.start, message.data))
                self._onlooker.progress(f"fetching the {shown.format(size_text(done + parcel.written))}")
        if cache.file_digest(path) != file.sha256:
            path.unlink()  # a rest of something else, or damaged: the next attempt begins anew
            raise LaunchError(f"{path.name} of the hub's data is not what the hub has promised; try again")

    def _ask(self, file: str, parcel: Parcel) -> None:
        """Ask for all parts that are due and may be asked for now."""
        now_s = time.monotonic()
        while self._bucket.takes(now_s) and (start := parcel.due(now_s)) is not None:
            self._hub.send(DataRequest(self._slot.ticket, file, start))

    def _queue(self) -> None:
        """Another replica of this machine fetches the same data: hold the place until it has them."""
        self._onlooker.progress("another process of this machine fetches the run's data")
        self._held()
        self._heard_s = time.monotonic()

    def _held(self) -> Message | None:
        """Hold the place; returns the next message."""
        if self._onlooker.stopped:
            raise Stopped
        now_s = time.monotonic()
        if now_s - self._held_s >= HOLD_S:
            self._held_s = now_s
            self._hub.send(SlotRequest(self._slot.ticket, about()))
        return self._hub.receive(WAIT_S)

    def _heard(self) -> Message | None:
        """Return the next message, and hold the place meanwhile."""
        now_s, message = time.monotonic(), self._held()
        if isinstance(message, DataPart):
            self._heard_s = now_s
        elif isinstance(message, Slot) and self._for_checkpoint and not message.resumed:
            raise NotNeeded
        elif now_s - self._heard_s > self._patience_s:
            raise SidebandError(f"the hub has sent no data for {self._patience_s:g} s")
        return message


def check_room(scratch: Path, files: Mapping[str, shipped.File]) -> None:
    """Check that the disk has room for what is not here yet.

    Raises:
        MachineError: it has not.
    """
    here = sum(path.stat().st_size for path in (scratch / "entry").iterdir())
    wanted, free = sum(file.size for file in files.values()) - here, shutil.disk_usage(scratch).free
    if wanted > free:
        raise MachineError(
            f"the run's data need {size_text(wanted)} in {scratch.parent}, where {size_text(free)} are free; "
            "XDG_CACHE_HOME=FOLDER puts them elsewhere"
        )


def from_hub(slot: Slot, overrides: Sequence[str]) -> bool:
    """Return whether this machine's data come from the hub: unless its user names files of their own."""
    return bool(slot.listing) and not any(text.partition("=")[0] in DATA for text in overrides)


def prepared(spec: RunSpec, slot: Slot, hub: Observer, given: bool, onlooker: Onlooker) -> Facts:
    """Get model and data ready on this machine; returns the facts of the data, which are the hub's.

    Args:
        spec: The run, as this machine takes part in it.
        slot: The place.
        hub: The connection that has it.
        given: The data come from the hub, unless they are here already.
        onlooker: Who waits for it.

    Raises:
        TsugiError: model or data cannot be had, or the data are others than the hub's.
        Stopped: the user wants to stop.
    """
    if not given:
        facts = prepare(spec, onlooker)  # what cannot be trained on is said now
        check_data(slot, facts)
        return facts
    prepare_model(spec, onlooker)
    facts = shipped.known(slot.data) or Fetch(hub, slot, onlooker, spec.sideband.hub_timeout_s).run()
    check_data(slot, facts)
    return facts
