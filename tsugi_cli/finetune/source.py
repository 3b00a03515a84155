"""A run's rows, whoever makes them: files and hub data sets (`tsugi_cli.data.sources`), or a user's builder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from tsugi_cli.config.spec import Data
from tsugi_cli.data.reader import Reader, reader_of
from tsugi_cli.data.rows import Row, RowError
from tsugi_cli.data.sources import BadRow, Part, RowSource, open_rows

from .builder import SPLITS, built


@dataclass(frozen=True)
class Made:
    """Rows that a builder has made for one split."""

    part: Part
    name: str
    given: list[Any]
    reader: Reader
    mixed: int = 0

    def __iter__(self) -> Iterator[Row | BadRow]:
        for at, each in enumerate(self.given):
            try:
                yield self.reader.row({"messages": each} if isinstance(each, list) else each, self.name, at)
            except RowError as error:
                yield BadRow(self.name, at, str(error))


class Built:
    """What a builder makes. It is called when that is asked for, and once."""

    def __init__(self, data: Data) -> None:
        self._data = data
        self.detected: tuple[str, ...] = ()
        self.weights: tuple[float, ...] = ()

    @cached_property
    def whole(self) -> tuple[Made, ...]:
        """The splits."""
        target, reader = self._data.builder or "", reader_of(self._data)
        found = built(self._data, target)
        return tuple(Made(part, f"data.builder={target}: {part}", found[part], reader) for part in SPLITS)

    def shards(self, _processes: int) -> tuple[Made, ...]:
        """The splits."""
        return self.whole

    def digest(self) -> str:
        """Of all that it has made."""
        return hashlib.sha256(json.dumps([each.given for each in self.whole], default=repr).encode()).hexdigest()


def source_of(data: Data) -> RowSource | Built:
    """The rows that these settings name.

    Raises:
        DataError: a file cannot be read, or is empty; a hub data set cannot be had.
    """
    return open_rows(data) if data.builder is None else Built(data)


def size_bytes(source: RowSource | Built) -> int:
    """Of the files; 0 where it is not known."""
    paths = [shard.path for shard in source.whole if not isinstance(shard, Made)]
    return sum(path.stat().st_size for path in paths if path is not None)
