"""Today's reader behind the interfaces of the data room."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tsugi_cli.config.spec import Data
from tsugi_cli.data import cache
from tsugi_cli.data.rows import Row
from tsugi_cli.data.split import Part
from tsugi_kpool.errors import DataError
from tsugi_kpool.foreign import open_plain

from .data import Conversation, conversation_of, load_built

SHARD_BYTES = 8 << 20
"""Of a file that is read in parts."""


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be read."""

    file: str
    line: int
    reason: str


@dataclass(frozen=True)
class ListShard:
    """Rows that a builder has made."""

    part: Part
    name: str
    made: list[Conversation]

    def __iter__(self) -> Iterator[Row]:
        for at, each in enumerate(self.made, start=1):
            yield Row(self.name, at, tuple(each), (None,) * len(each))


@dataclass(frozen=True)
class FileShard:
    """Lines of a file from a byte on."""

    path: Path
    name: str
    start: int
    lines: int
    """How many."""
    before: int
    """Lines before it."""
    part: Part = Part.OPEN

    def __iter__(self) -> Iterator[Any]:
        with open_plain(self.path) as file:
            file.seek(self.start)
            for number in range(self.before + 1, self.before + self.lines + 1):
                line = file.readline()
                if line.strip():
                    yield self._row(number, line)

    def _row(self, number: int, line: bytes) -> Row | BadRow:
        try:
            found = conversation_of(line)
        except ValueError as error:
            return BadRow(self.name, number, str(error))
        return Row(self.name, number, tuple(found), (None,) * len(found))


class OldSource:
    """The user's rows."""

    def __init__(self, data: Data) -> None:
        self.data, self.detected = data, ""
        self._built: list[ListShard] | None = None

    def digest(self) -> str:
        """Of their content."""
        if self.data.builder is None:
            try:
                return cache.file_digest(Path(self.data.path or "").expanduser())
            except OSError as error:
                raise DataError(f"cannot read {self.data.path}: {error.strerror or error}") from error
        return hashlib.sha256(json.dumps([each.made for each in self.built()]).encode()).hexdigest()

    def shards(self) -> list[Any]:
        """In the order of the rows."""
        return list(self.built()) if self.data.builder is not None else list(self._parts())

    def built(self) -> list[ListShard]:
        """What the user's code makes; it is called once."""
        if self._built is None:
            found, name = load_built(self.data), f"data.builder={self.data.builder}"
            named = {Part.TRAIN: found.train, Part.EVAL: found.eval, Part.TEST: found.test}
            self._built = [ListShard(part, f"{name}: {part.name.lower()}", made) for part, made in named.items()]
        return self._built

    def _parts(self) -> Iterator[FileShard]:
        name = str(self.data.path)
        path = Path(name).expanduser().resolve()
        try:
            with open_plain(path) as file:
                before = 0
                while True:
                    start = file.tell()
                    chunk = file.read(SHARD_BYTES) + file.readline()
                    if not chunk:
                        return
                    lines = chunk.count(b"\n") + (not chunk.endswith(b"\n"))
                    yield FileShard(path, name, start, lines, before)
                    before += lines
        except (OSError, RuntimeError) as error:
            raise DataError(f"cannot read {name}: {getattr(error, 'strerror', None) or error}") from error
