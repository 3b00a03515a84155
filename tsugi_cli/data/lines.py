"""Records of a file, one after the other, each with its line: JSON lines, arrays, tables, packed or not.

Files are streamed; only a JSON array is held in memory, because it has no end before its end. A line ends at a line
feed and nowhere else: a raw U+2028 inside a string is text. No torch here; pyarrow is imported where a file needs it.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TextIO, cast

from tsugi_kpool.errors import DataError
from tsugi_kpool.foreign import open_plain

from .rows import RowError

Record = tuple[int, Any]
"""Its line (from 1 on), and what stands there: an object, or a RowError that says why it cannot be read."""
MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
"""What a file begins with -> how it is read. That of UTF-32 begins as that of UTF-16 does."""
MOST_ARRAY_BYTES = 1 << 30
HEAD_BYTES = 4096
ROWS_AT_ONCE = 1024


def records(path: Path, name: str) -> Iterator[Record]:
    """All records of a file.

    Args:
        path: The file.
        name: As its user named it, for errors.

    Raises:
        DataError: the file cannot be read at all.
    """
    kind = path.name.lower().removesuffix(".gz").removesuffix(".zst").rpartition(".")[2]
    reader = READERS.get(kind, _json_lines)
    try:
        if reader in (_parquet, _arrow):
            yield from cast("Callable[[Path], Iterator[Record]]", reader)(path.resolve())
            return
        with opened(path) as file:
            yield from cast("Callable[[BinaryIO], Iterator[Record]]", reader)(file)
    except (EOFError, gzip.BadGzipFile) as error:
        raise DataError(f"cannot read {name}: it is no whole gzip file ({error})") from error
    except (OSError, RuntimeError, csv.Error, UnicodeError) as error:
        raise DataError(f"cannot read {name}: {getattr(error, 'strerror', None) or error}") from error


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """A file's bytes, unpacked."""
    with open_plain(path.resolve()) as file:  # the user named it, so links on the way are meant
        name = path.name.lower()
        if name.endswith(".gz"):
            yield cast(BinaryIO, io.BufferedReader(cast(Any, gzip.GzipFile(fileobj=file))))
        elif name.endswith(".zst"):
            yield _unpacked_zstd(file, path)
        else:
            yield file


def _unpacked_zstd(file: BinaryIO, path: Path) -> BinaryIO:
    try:
        import zstandard
    except ImportError as error:
        raise DataError(f"{path} is packed with zstd, which needs one more package: pip install zstandard") from error
    reader = zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True)
    return io.BufferedReader(cast(Any, reader))


def parsed(line: bytes | str) -> Any:
    """One line as an object, or the RowError that says why it is none."""
    try:
        return json.loads(line.decode("utf-8") if isinstance(line, bytes) else line)
    except UnicodeDecodeError as error:
        return RowError(f"not UTF-8 text ({error.reason} at byte {error.start})")
    except json.JSONDecodeError as error:
        return RowError(f"not JSON ({error.msg} at column {error.colno})")
    except RecursionError:
        return RowError("lists or objects inside each other, too deep to be read")
    except ValueError as error:  # a number of thousands of digits
        return RowError(f"not JSON that can be read ({error})")


def _json_lines(file: BinaryIO) -> Iterator[Record]:
    head = _peek(file)
    encoding = _marked(head)
    if encoding is None or encoding == "utf-8-sig":
        for number, line in enumerate(file, start=1):
            line = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
            if line.strip():
                yield number, parsed(line)
        return
    for number, text in enumerate(_as_text(file, encoding), start=1):
        if text.strip():
            yield number, parsed(text)


def _json(file: BinaryIO) -> Iterator[Record]:
    """A JSON array, one object, or lines after all: many a .json file holds those."""
    head = _peek(file)
    encoding = _marked(head) or "utf-8"
    if not head.decode(encoding, "ignore").lstrip("\ufeff \t\r\n").startswith("["):
        yield from _json_lines(file)
        return
    data = file.read(MOST_ARRAY_BYTES + 1)
    if len(data) > MOST_ARRAY_BYTES:
        raise DataError("a JSON array of more than 1 GiB is not read: write one object a line (.jsonl)")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        yield 1, RowError(f"not {encoding} text ({error.reason} at byte {error.start})")
        return
    yield from _items(text)


def _items(text: str) -> Iterator[Record]:
    """The items of an array, each with the line on which it begins."""
    decoder, at, line = json.JSONDecoder(), text.index("[") + 1, 1
    counted = 0
    while True:
        at = _next(text, at, " \t\r\n,")
        line, counted = line + text.count("\n", counted, at), at
        if at >= len(text) or text[at] == "]":
            if at >= len(text):
                yield line, RowError("the array has no end")
            return
        try:
            item, at = decoder.raw_decode(text, at)
        except json.JSONDecodeError as error:
            wrong = line + text.count("\n", counted, error.pos)
            yield wrong, RowError(f"not JSON ({error.msg} at column {error.colno})")
            return
        except RecursionError:
            yield line, RowError("lists or objects inside each other, too deep to be read")
            return
        yield line, item


def _next(text: str, at: int, skipped: str) -> int:
    while at < len(text) and text[at] in skipped:
        at += 1
    return at


def _table(separator: str) -> Callable[[BinaryIO], Iterator[Record]]:
    """Rows of a table; a cell that is a JSON list or object counts as one, an empty cell as nothing."""

    def read(file: BinaryIO) -> Iterator[Record]:
        csv.field_size_limit(sys.maxsize)
        reader = csv.DictReader(_as_text(file, _marked(_peek(file)) or "utf-8", newline=""), delimiter=separator)
        line = reader.line_num + 1
        for row in reader:
            first, line = max(2, line), reader.line_num + 1
            if None in row or None in row.values():
                wanted = len(reader.fieldnames or ())
                yield first, RowError(f"it has not as many cells as the head of the table has ({wanted})")
            else:
                yield first, {key: _cell(value) for key, value in row.items() if value != ""}

    return read


def _cell(text: str) -> Any:
    if text[:1] in "[{":
        found = parsed(text)
        return text if isinstance(found, RowError) else found
    return text


def _whole_text(file: BinaryIO) -> Iterator[Record]:
    """A .txt file is one text."""
    data = file.read()
    try:
        yield 1, {"text": data.decode(_marked(data[:4]) or "utf-8")}
    except UnicodeDecodeError as error:
        yield 1, RowError(f"not UTF-8 text ({error.reason} at byte {error.start})")


def _parquet(path: Path) -> Iterator[Record]:
    import pyarrow.parquet

    with open_plain(path) as file:
        yield from _numbered(pyarrow.parquet.ParquetFile(file).iter_batches(batch_size=ROWS_AT_ONCE))


def _arrow(path: Path) -> Iterator[Record]:
    import pyarrow

    with open_plain(path) as file:
        try:
            stream: Any = pyarrow.ipc.open_stream(file)
        except pyarrow.ArrowInvalid:
            file.seek(0)
            found = pyarrow.ipc.open_file(file)
            stream = (found.get_batch(at) for at in range(found.num_record_batches))
        yield from _numbered(stream)


def _numbered(batches: Iterable[Any]) -> Iterator[Record]:
    number = 0
    for batch in batches:
        for row in batch.to_pylist():
            number += 1
            yield number, without_nulls(row)


def without_nulls(value: Any) -> Any:
    """The same without keys whose value is null: Arrow gives every object the keys of all the others."""
    if isinstance(value, dict):
        return {key: without_nulls(each) for key, each in value.items() if each is not None}
    if isinstance(value, list):
        return [without_nulls(each) for each in value]
    return value


def _peek(file: BinaryIO) -> bytes:
    """The file's first bytes, which are still to be read."""
    return cast(io.BufferedReader, file).peek(HEAD_BYTES)


def _marked(head: bytes) -> str | None:
    """The encoding that a file's first bytes name.

    Raises:
        DataError: they are those of an encoding without its mark.
    """
    for mark, encoding in MARKS:
        if head.startswith(mark):
            return encoding
    if b"\0" in head[:4]:
        raise DataError("it looks like UTF-16 or UTF-32 without a byte order mark; save it as UTF-8")
    return None


def _as_text(file: BinaryIO, encoding: str, newline: str = "\n") -> TextIO:
    return io.TextIOWrapper(file, encoding=encoding, newline=newline)


READERS: dict[str, Callable[..., Iterator[Record]]] = {
    "jsonl": _json_lines,
    "ndjson": _json_lines,
    "json": _json,
    "csv": _table(","),
    "tsv": _table("\t"),
    "txt": _whole_text,
    "parquet": _parquet,
    "arrow": _arrow,
}
