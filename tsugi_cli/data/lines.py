"""Records of a file, one after the other, each with its line: JSON lines, arrays, tables, packed or not.

Files are streamed; only a JSON array is held in memory, because it has no end before its end. A line ends at a line
feed and nowhere else: a raw U+2028 inside a string is text. No torch here; pyarrow is imported where a file needs it.
"""

from __future__ import annotations

import codecs
import gzip
import io
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TextIO, cast

from tsugi_kpool.errors import DataError
from tsugi_kpool.foreign import open_plain

from . import cells
from .jsontext import beginning, no_text, parsed
from .marks import Unreadable, as_text, marked, peek
from .rows import RowError

Record = tuple[int, Any]
"""Its line (from 1 on), and what stands there: an object, or a RowError that says why it cannot be read."""
MOST_ARRAY_BYTES = 1 << 30
WHOLE = re.compile(r"\s*(\[|\{\s*\n)")
"""How a JSON text begins that goes over more than one line: each line of a file of JSON lines is a whole object."""


def records(path: Path, name: str) -> Iterator[Record]:
    """All records of a file.

    Args:
        path: The file.
        name: As its user named it, for errors.

    Raises:
        DataError: the file cannot be read at all.
    """
    kind = kind_of(path)
    try:
        if kind in TABLES:
            if path.suffix.lower() in (".gz", ".zst"):
                raise Unreadable(f"a .{kind} file is packed inside itself, and not read packed once more: unpack it")
            with open_plain(path.resolve()) as file:
                yield from TABLES[kind](file)
        else:
            with opened(path) as file:
                yield from READERS.get(kind, _json)(file)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"cannot read {name}: it is no whole gzip file ({error})") from error
    except (OSError, RuntimeError, UnicodeError, Unreadable) as error:
        raise DataError(f"cannot read {name}: {getattr(error, 'strerror', None) or error}") from error


def kind_of(path: Path) -> str:
    """Its ending without the packing's: jsonl, csv, ..."""
    return path.name.lower().removesuffix(".gz").removesuffix(".zst").rpartition(".")[2]


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """A file's bytes, unpacked."""
    with open_plain(path.resolve()) as file:  # the user named it, so links on the way are meant
        name = path.name.lower()
        if name.endswith(".gz"):
            yield cast(BinaryIO, io.BufferedReader(cast(Any, gzip.GzipFile(fileobj=file))))
        elif name.endswith(".zst"):
            yield _unpacked_zstd(file)
        else:
            yield file


def _unpacked_zstd(file: BinaryIO) -> BinaryIO:
    """By pyarrow, which refuses a file that ends too early."""
    import pyarrow

    return cast(BinaryIO, io.BufferedReader(cast(Any, pyarrow.CompressedInputStream(file, "zstd"))))


def is_lines(head: bytes) -> bool:
    """Whether these first bytes are of JSON lines in UTF-8 without a mark, which can be cut at any line feed."""
    return marked(head) is None and not WHOLE.match(head.decode("utf-8", "ignore"))


def _json(file: BinaryIO) -> Iterator[Record]:
    """Whatever it is called: JSON lines, an array, or objects over several lines."""
    head = peek(file)
    encoding = marked(head)
    if WHOLE.match(head.decode(encoding or "utf-8", "ignore").lstrip("\ufeff")):
        yield from _whole(file, encoding or "utf-8")
    elif encoding in (None, "utf-8-sig"):
        for number, line in enumerate(file, start=1):
            line = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
            if line.strip():
                yield number, parsed(line)
    else:
        yield from _wide_lines(as_text(file, encoding))


def _wide_lines(lines: TextIO) -> Iterator[Record]:
    """Lines of UTF-16 and UTF-32."""
    number = 0
    try:
        for number, text in enumerate(lines, start=1):
            if text.strip():
                yield number, parsed(text)
    except UnicodeDecodeError as error:
        yield number + 1, RowError(f"not {error.encoding} text ({error.reason})")


def _whole(file: BinaryIO, encoding: str) -> Iterator[Record]:
    data = file.read(MOST_ARRAY_BYTES + 1)
    if len(data) > MOST_ARRAY_BYTES:
        raise Unreadable("a JSON array of more than 1 GiB is not read: write one object a line (.jsonl)")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        yield 1 + data.count(b"\n", 0, error.start), no_text(error, encoding)
        return
    yield from _items(text)


def _items(text: str) -> Iterator[Record]:
    """The items of an array, or objects one after the other, each with the line on which it begins."""
    at = _next(text, 0, " \t\r\n")
    array = text[at] == "["
    at, line, counted = at + array, 1, 0
    while True:
        at = _next(text, at, " \t\r\n,")
        line, counted = line + text.count("\n", counted, at), at
        if at >= len(text) or (array and text[at] == "]"):
            yield from _end(text, at, line, array)
            return
        item, at = beginning(text, at)
        if isinstance(item, RowError):
            yield line + text.count("\n", counted, at), item
            return
        yield line, item


def _end(text: str, at: int, line: int, array: bool) -> Iterator[Record]:
    if array and at >= len(text):
        yield line, RowError("the array has no end")
    elif array and (more := _next(text, at + 1, " \t\r\n")) < len(text):
        yield line + text.count("\n", at, more), RowError("behind the array's end stands something more")


def _next(text: str, at: int, skipped: str) -> int:
    while at < len(text) and text[at] in skipped:
        at += 1
    return at


def _whole_text(file: BinaryIO) -> Iterator[Record]:
    """A .txt file is one text."""
    encoding = marked(peek(file)) or "utf-8"
    try:
        text = file.read().decode(encoding)
    except UnicodeDecodeError as error:
        yield 1, no_text(error, encoding)
        return
    if isinstance(parsed(text.split("\n", 1)[0]), dict):
        raise Unreadable("it holds JSON lines; a .txt file is one text: name it .jsonl")
    yield 1, {"text": text}


READERS: dict[str, Callable[[BinaryIO], Iterator[Record]]] = {
    "csv": cells.separated(","),
    "tsv": cells.separated("\t"),
    "txt": _whole_text,
}
"""Any other ending is read as JSON."""
TABLES: dict[str, Callable[[BinaryIO], Iterator[Record]]] = {"parquet": cells.parquet, "arrow": cells.arrow}
