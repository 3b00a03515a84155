"""The exchange's disk: each round's result and what it has left over, durable before any member may say "reduced".

Every round is written over a file that holds nothing any more (a slot): the disk has its blocks already, and need not
write down where they are. A record names the rounds that it builds on, so that neither a commit nor an abort has to
be written.
"""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import numpy as np

from tsugi_kpool.codec.coding import Bytes
from tsugi_kpool.durable import flush_folder
from tsugi_kpool.errors import MachineError
from tsugi_kpool.foreign import open_plain

from .frames import Part, Result
from .reduction import REST, Left, Reduced, left_in

FORM = 2
_NAME = re.compile(r"slot-(\d{1,9})\.bin")
_LENGTH = 8
_flush = getattr(os, "fdatasync", os.fsync)
"""Not the times of a file, which some systems cannot leave out."""

Key = tuple[int, int]
"""Generation and round."""
Unwritten = Mapping[int, Key]
"""Adapter -> the newest round of it whose result members may have, and the disk has not."""


class Head(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What stands in front of a round's numbers."""

    part: Part
    result: Result
    body_bytes: int
    left_bytes: int
    check: int
    """CRC-32 of the result's bytes and what is left over: against accidents, as all on this disk, and a sixth of the
    time of SHA-256, for which every round would wait."""
    holds: dict[int, Key]
    """Adapter -> the committed round that holds what is left of it, when this one was written."""
    form: int = FORM


@dataclass(frozen=True)
class Kept:
    """A round as it lies on the disk."""

    part: Part
    reduced: Reduced
    left: Sequence[Left]
    """What it leaves over of each of its adapters."""


@dataclass(frozen=True)
class Record:
    """A slot that holds a whole round."""

    slot: int
    head: Head
    kept: Kept


class Books:
    """The folder of an exchange. Owned by one thread at a time.

    Args:
        folder: Of the run; made if it is not there.

    Raises:
        MachineError: it cannot be read or made.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            found = [int(match[1]) for each in folder.iterdir() if (match := _NAME.fullmatch(each.name))]
            for each in folder.glob("*.tmp"):
                each.unlink()
        except OSError as error:
            raise MachineError(f"the exchange cannot keep its rounds in {folder}: {error.strerror}") from error
        self._files = sorted(found)
        self._slots: dict[Key, int] = {}
        """Round that may still be needed -> its slot."""
        self._of: dict[int, Key] = {}
        """Adapter -> the committed round that holds what is left of it."""
        self._newest: Key | None = None
        self._based_on: frozenset[Key] = frozenset()
        """What the newest record builds on: needed until the next one is whole."""

    def begin(self, left: Mapping[int, Left]) -> None:
        """Write down what is left over where a run goes on from a checkpoint, as of a round before all others; what
        the books have already is newer.

        Raises:
            MachineError: it cannot be written.
        """
        sizes = {each.size for each in left.values()}
        if self._files or len(sizes) != 1:
            return
        part = Part(0, 0, -1, tuple(left), (), sizes.pop(), str(REST), 0)
        try:
            self.write(Kept(part, Reduced(Result(0, 0), np.empty(0, np.uint8)), list(left.values())))
        except OSError as error:
            raise MachineError(f"the exchange cannot write to {self._folder}: {error.strerror}") from error

    def load(self) -> tuple[dict[int, Left], Kept | None, Kept | None]:
        """Return what each adapter's newest committed round has left, the newest round, which may count, and the
        committed one before it.

        A record that is not whole was never said to stand, unless a later one builds on it.

        Raises:
            MachineError: a round that is built on is damaged.
        """
        read = {slot: self._read(slot) for slot in self._files}
        records = {(each.head.part.generation, each.head.part.round): each for each in read.values() if each}
        if not records:
            if len(read) > 1:
                raise MachineError(f"the exchange cannot go on from {self._folder}: none of its rounds is whole")
            return {}, None, None
        key = max(records)
        newest = records[key]
        left = {adapter: self._held(records, adapter, held) for adapter, held in newest.head.holds.items()}
        self._of, self._based_on = dict(newest.head.holds), frozenset(newest.head.holds.values())
        self._slots = {each: records[each].slot for each in {key, *self._based_on}}
        self._newest = key
        before = max(self._based_on, default=None)
        return left, newest.kept, None if before is None else records[before].kept

    def write(self, kept: Kept, settled: tuple[Part, bool] | None = None) -> None:
        """Write a round. It is on the medium when this returns.

        Args:
            kept: The round.
            settled: The round before, and whether it counts.

        Raises:
            OSError: it is not.
        """
        self.settle(settled)
        part, body, rows = kept.part, kept.reduced.body, [each.coded for each in kept.left]
        check = _check([body, *rows])
        head = Head(part, kept.reduced.result, body.nbytes, sum(each.nbytes for each in rows), check, self._of)
        front, slot = msgspec.json.encode(head), self._free()
        path = self._path(slot)
        try:
            _write(path, [len(front).to_bytes(_LENGTH, "big") + front, body.data, *(each.data for each in rows)])
            if slot not in self._files:
                flush_folder(self._folder)
                self._files.append(slot)
        except OSError:
            with suppress(OSError):
                path.unlink()  # what a full disk has taken of it is of no use
            self._files = [each for each in self._files if each != slot]
            raise
        self._newest, self._based_on = (part.generation, part.round), frozenset(self._of.values())
        self._slots = {each: at for each, at in self._slots.items() if each in self._based_on} | {self._newest: slot}

    def settle(self, settled: tuple[Part, bool] | None) -> None:
        """Take in whether the newest round counts; the next record says it on the disk."""
        if settled is None or not settled[1]:
            return
        part, key = settled[0], (settled[0].generation, settled[0].round)
        for adapter in part.adapters:
            self._of.pop(adapter, None)
            if key in self._slots:  # else the disk had no room for it
                self._of[adapter] = key

    def _free(self) -> int:
        """Return a slot that neither the newest record nor what it or the next one builds on needs."""
        needed = {*self._based_on, *self._of.values()} | ({self._newest} if self._newest else set())
        busy = {slot for key, slot in self._slots.items() if key in needed}
        return min(set(range(len(busy) + 1)) - busy)

    def _held(self, records: dict[Key, Record], adapter: int, key: Key) -> Left:
        record = records.get(key)
        if record is None or adapter not in record.head.part.adapters:
            raise MachineError(f"the exchange cannot go on from {self._folder}: round {key[1]} is damaged or missing")
        return record.kept.left[record.head.part.adapters.index(adapter)]

    def _path(self, slot: int) -> Path:
        return self._folder / f"slot-{slot}.bin"

    def _read(self, slot: int) -> Record | None:
        """Return what a slot holds; None when that is not whole."""
        try:
            with open_plain(self._path(slot)) as file:
                data = file.read()
        except OSError as error:
            raise MachineError(f"the exchange cannot read {self._path(slot)}: {error.strerror}") from error
        start = _LENGTH + int.from_bytes(data[:_LENGTH], "big")
        try:
            head = msgspec.json.decode(data[_LENGTH:start], type=Head)
        except (ValueError, msgspec.MsgspecError):
            return None
        stop = start + head.body_bytes
        body, rows = (
            np.frombuffer(data[start:stop], np.uint8),
            np.frombuffer(data[stop : stop + head.left_bytes], np.uint8),
        )
        if _check([body, rows]) != head.check or (left := left_in(head.part, rows)) is None:
            return None
        return Record(slot, head, Kept(head.part, Reduced(head.result, body), left))


def _check(parts: Sequence[Bytes]) -> int:
    check = 0
    for part in parts:
        check = zlib.crc32(part.data, check)
    return check


def _write(path: Path, parts: Sequence[bytes | memoryview]) -> None:
    """Write these parts over the beginning of a file, none of which is copied before, and flush it."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        for part in parts:
            rest = memoryview(part)
            while rest:
                rest = rest[os.write(descriptor, rest) :]
        _flush(descriptor)
    finally:
        os.close(descriptor)


def without(kept: Kept | None, lost: Unwritten) -> Kept | None:
    """Return a round without what it leaves over of these adapters: a later one, which is lost, has used that up."""
    if kept is None or not lost:
        return kept
    none = np.empty(0, np.uint8)
    rows = zip(kept.part.adapters, kept.left, strict=False)
    return replace(kept, left=[Left(row.size, none) if adapter in lost else row for adapter, row in rows])
