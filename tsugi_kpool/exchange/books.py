"""The exchange's disk: each round's result and what it has left over, durable before any member may say "reduced".

One file for each round, written beside its place and moved there. A round's file stays for as long as it holds what
some adapter has left over, and the newest one because nobody knows yet whether its round counts.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from tsugi_kpool.codec.coding import Floats
from tsugi_kpool.durable import flush_folder
from tsugi_kpool.errors import MachineError
from tsugi_kpool.foreign import open_plain

from .frames import Part, Result
from .reduction import Reduced

FORM = 1
_NAME = re.compile(r"round-(\d{1,15})\.bin")
_LENGTH = 8


class Head(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What stands in front of a round's numbers."""

    part: Part
    result: Result
    body_bytes: int
    check: str
    """SHA-256 of the result's bytes and what is left over."""
    form: int = FORM


@dataclass(frozen=True)
class Kept:
    """A round as it lies on the disk."""

    part: Part
    reduced: Reduced


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
        self._rounds = sorted(found)
        self._of: dict[int, int] = {}
        """Adapter -> the committed round that holds what is left of it."""

    def load(self) -> tuple[dict[int, Floats], Kept | None]:
        """Return what each adapter's newest committed round has left, and the newest round, which may count or not.

        Raises:
            MachineError: a round's file is damaged.
        """
        rests: dict[int, Floats] = {}
        for number in self._rounds[:-1]:
            kept = self._read(number)
            self._take(kept, rests)
        return rests, self._read(self._rounds[-1]) if self._rounds else None

    def write(self, part: Part, reduced: Reduced) -> None:
        """Write a round. It is on the medium when this returns.

        Raises:
            OSError: it is not.
        """
        body, rest = reduced.body.data, np.ascontiguousarray(reduced.rest).reshape(-1).view(np.uint8).data
        digest = hashlib.sha256(body)
        digest.update(rest)
        head = msgspec.json.encode(Head(part, reduced.result, len(body), digest.hexdigest()))
        path = self._path(part.round)
        scratch = path.with_suffix(".tmp")
        try:
            _write(scratch, [len(head).to_bytes(_LENGTH, "big") + head, body, rest])
        except OSError:
            scratch.unlink(missing_ok=True)  # what a full disk has taken of it is of no use
            raise
        scratch.replace(path)
        flush_folder(self._folder)
        self._rounds = sorted({*self._rounds, part.round})

    def commit(self, part: Part) -> None:
        """The newest round counts: files that hold nothing of any adapter any more go."""
        for adapter in part.adapters:
            self._of[adapter] = part.round
        for number in set(self._rounds) - set(self._of.values()):
            self._drop(number)

    def drop(self, part: Part) -> None:
        """The newest round does not count."""
        self._drop(part.round)
        with suppress(OSError):
            flush_folder(self._folder)

    def _drop(self, number: int) -> None:
        if number not in self._rounds:
            return  # the disk had no room for it
        self._rounds.remove(number)
        with suppress(OSError):
            self._path(number).unlink()

    def _take(self, kept: Kept, rests: dict[int, Floats]) -> None:
        for row, adapter in enumerate(kept.part.adapters):
            rests[adapter] = kept.reduced.rest[row]
            self._of[adapter] = kept.part.round

    def _path(self, number: int) -> Path:
        return self._folder / f"round-{number}.bin"

    def _read(self, number: int) -> Kept:
        path = self._path(number)
        try:
            with open_plain(path) as file:
                data = file.read()
            length = int.from_bytes(data[:_LENGTH], "big")
            head = msgspec.json.decode(data[_LENGTH : _LENGTH + length], type=Head)
            rest_of = data[_LENGTH + length :]
            if hashlib.sha256(rest_of).hexdigest() != head.check:
                raise ValueError("its checksum does not match")
            rest = np.frombuffer(rest_of[head.body_bytes :], np.float32).reshape(
                len(head.part.adapters), head.part.size
            )
            return Kept(head.part, Reduced(head.result, np.frombuffer(rest_of[: head.body_bytes], np.uint8), rest))
        except OSError as error:
            raise MachineError(f"the exchange cannot read {path}: {error.strerror}") from error
        except (ValueError, msgspec.MsgspecError) as error:
            raise MachineError(f"the exchange cannot go on from {path}: {error}") from error


def _write(path: Path, parts: Sequence[bytes | memoryview]) -> None:
    """Write a file of these parts, none of which is copied before, and flush it."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        for part in parts:
            rest = memoryview(part)
            while rest:
                rest = rest[os.write(descriptor, rest) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
