"""Where rows come from: files, folders, patterns, hub names and builders, cut into parts that processes can share."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from tsugi_cli.config import files
from tsugi_cli.config.spec import Data
from tsugi_kpool.errors import DataError
from tsugi_kpool.foreign import open_plain

from . import folders, hub
from .jsontext import TOO_DEEP, parsed
from .lines import Record, is_lines, kind_of, records
from .marks import HEAD_BYTES
from .reader import Reader, reader_of
from .rows import Row, RowError

Part = Literal["open", "train", "eval", "test"]
"""open: to be split; else its user has said where it belongs."""
SPLITS = {"eval": "validation", "test": "test"}
"""What `data.eval` and `data.test` mean of a hub data set that is named without its split."""
SPLIT_BYTES = 1 << 22
"""A smaller file is not cut: to begin reading costs more."""
CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that cannot be trained on."""

    file: str
    line: int
    reason: str

    @property
    def place(self) -> str:
        """`file:line`."""
        return f"{self.file}:{self.line}"


@dataclass(frozen=True)
class Shard:
    """Some rows of one source, in their order. Can be sent to another process.

    Attributes:
        name: As the user named the source.
        part: Where its rows belong.
        mixed: Which of `data.mix` it is; 0 without.
        reader: Makes rows of records.
        path: The file; None for a hub data set.
        start, stop: Bytes of a file of JSON lines; (0, 0): all of it.
        line: Lines before `start`.
        remote: The hub data set.
    """

    name: str
    part: Part
    reader: Reader
    mixed: int = 0
    path: Path | None = None
    start: int = 0
    stop: int = 0
    line: int = 0
    remote: hub.Remote | None = None

    def __iter__(self) -> Iterator[Row | BadRow]:
        for line, found in self.records():
            yield self._row(line, found)

    def records(self) -> Iterator[Record]:
        """What stands there, not looked at any further.

        Raises:
            DataError: it cannot be read at all.
        """
        if self.remote is not None:
            return self.remote.records()
        if self.path is None:
            return iter(())
        return _cut(self.path, self.start, self.stop, self.line) if self.stop else records(self.path, self.name)

    def _row(self, line: int, found: Any) -> Row | BadRow:
        try:
            if isinstance(found, RowError):
                raise found
            return self.reader.row(found, self.name, line)
        except RowError as error:
            return BadRow(self.name, line, str(error))
        except RecursionError:
            return BadRow(self.name, line, TOO_DEEP)


@dataclass(frozen=True)
class RowSource:
    """All rows of a run's data."""

    whole: tuple[Shard, ...]
    """One for each file or hub data set, in the order in which the user named them."""
    detected: tuple[str, ...]
    """What each source was taken for, in words."""
    weights: tuple[float, ...] = ()
    """Of `data.mix`: shares of what is trained on."""

    def shards(self, processes: int) -> list[Shard]:
        """The same rows in the same order, in pieces that so many processes can share."""
        return [piece for shard in self.whole for piece in _pieces(shard, processes)]

    def digest(self) -> str:
        """SHA-256 of everything that is read: a file's bytes, a hub data set's revision."""
        found = hashlib.sha256()
        for shard in self.whole:
            found.update(json.dumps([shard.part, shard.mixed, _digest(shard)]).encode())
        return found.hexdigest()


def open_rows(data: Data) -> RowSource:
    """The rows that these settings name, files only: what a builder makes is rows already (`built`).

    Raises:
        DataError: a file cannot be read, or is empty; a hub data set cannot be had.
    """
    reader = reader_of(data)
    named: list[tuple[str, Part, int]] = [(text, "open", 0) for text in files.named(data.path)]
    named += [(text, "open", at) for at, text in enumerate(files.named(data.mix, "data.mix"))]
    named += [(text, "eval", 0) for text in files.named(data.eval)]
    named += [(text, "test", 0) for text in files.named(data.test)]
    folders.check_asked([text for text, _, _ in named], data)
    whole = [shard for text, part, mixed in named for shard in _found(text, part, mixed, reader, data)]
    weights = tuple(float(each.rpartition(":")[2]) for each in data.mix)
    return RowSource(tuple(whole), tuple(_detected(shard) for shard in whole), weights)


def check_format(data: Data) -> tuple[int, list[BadRow]]:
    """Read every row and make no token of it: how many can be read, and those that cannot.

    Raises:
        DataError: as `open_rows`.
    """
    good, bad = 0, []
    for shard in open_rows(data).whole:
        for row in shard:
            if isinstance(row, BadRow):
                bad.append(row)
            else:
                good += 1
    return good, bad


def _found(text: str, part: Part, mixed: int, reader: Reader, data: Data) -> list[Shard]:
    """The shards of what a user has named, whole."""
    if files.is_file(text):
        paths = [Path(text).expanduser()]
    elif files.is_dir(text):
        paths = folders.of_folder(text, data.split if part == "open" else None)
    elif named := files.HUB_NAME.fullmatch(text) if files.is_hub_name(text) else None:
        split = SPLITS.get(part, data.split or "train")
        remote = hub.Remote(named[1], data.subset, named[2] or split, data.revision)
        return [Shard(remote.name, part, reader, mixed, remote=remote.checked())]
    else:
        paths = files.globbed(text) if files.GLOB.search(text) else []
    if not paths:
        raise DataError(files.data_problem(text) or f"{text} holds no data file")
    names = [text] if len(paths) == 1 and files.is_file(text) else [str(each) for each in paths]
    return [Shard(name, part, reader, mixed, path) for name, path in zip(names, paths, strict=True)]


def _detected(shard: Shard) -> str:
    """What its first good row is.

    Raises:
        DataError: there is no row.
    """
    empty = True
    for _, found in shard.records():
        empty = False
        try:
            if not isinstance(found, RowError):
                return f"{shard.name}: {shard.reader.words(found)}"
        except RowError:
            break
        break
    if empty:
        raise DataError(f"{shard.name} is empty")
    return f"{shard.name}: not known"


def _pieces(shard: Shard, processes: int) -> list[Shard]:
    """A file of JSON lines cut at line ends; anything else stays whole."""
    if shard.path is None or not _can_be_cut(shard.path):
        return [shard]
    size = shard.path.stat().st_size
    count = min(processes, size // SPLIT_BYTES)
    if count < 2:
        return [shard]
    with open_plain(shard.path.resolve()) as file:
        cuts = sorted({_line_end(file, size * at // count) for at in range(1, count)} | {0, size})
        lines = _lines_before(file, cuts)
    pairs = zip(cuts, cuts[1:], lines, strict=False)
    return [replace(shard, start=start, stop=stop, line=line) for start, stop, line in pairs]


def _can_be_cut(path: Path) -> bool:
    if kind_of(path) not in ("jsonl", "ndjson") or path.suffix.lower() in files.PACKED:
        return False
    with open_plain(path.resolve()) as file:
        return is_lines(file.read(HEAD_BYTES))


def _line_end(file: Any, at: int) -> int:
    file.seek(at)
    file.readline()
    return int(file.tell())


def _lines_before(file: Any, cuts: Sequence[int]) -> list[int]:
    """How many lines end before each of these places."""
    file.seek(0)
    counts, lines, at = [], 0, 0
    for cut in cuts:
        while at < cut:
            chunk = file.read(min(CHUNK_BYTES, cut - at))
            lines, at = lines + chunk.count(b"\n"), at + len(chunk)
        counts.append(lines)
    return counts


def _cut(path: Path, start: int, stop: int, line: int) -> Iterator[Record]:
    with open_plain(path.resolve()) as file:
        file.seek(start)
        at = start
        while at < stop and (text := file.readline()):
            at, line = at + len(text), line + 1
            if text.strip():
                yield line, parsed(text)


def _digest(shard: Shard) -> str:
    if shard.remote is not None:
        return shard.remote.fingerprint()
    if shard.path is None:
        return ""
    found = hashlib.sha256(shard.path.name.lower().encode())
    try:
        with open_plain(shard.path.resolve()) as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
            while chunk := file.read(CHUNK_BYTES):
                found.update(chunk)
    except OSError as error:
        raise DataError(f"cannot read {shard.name}: {error.strerror or error}") from error
    return found.hexdigest()
