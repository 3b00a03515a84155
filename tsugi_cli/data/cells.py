"""Rows of tables: separated by commas or tabs, parquet, Arrow."""

from __future__ import annotations

import csv
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any, BinaryIO

from .jsontext import CONVERT, parsed
from .marks import Unreadable, as_text, marked, peek
from .rows import RowError

ROWS_AT_ONCE = 1024
_UNDECODED = re.compile("[\udc80-\udcff]")
"""How Python writes a byte that is no UTF-8."""


def separated(separator: str) -> Callable[[BinaryIO], Iterator[tuple[int, Any]]]:
    """The reader of a table in text. A cell that is a list of messages counts as one, an empty cell as null."""

    def read(file: BinaryIO) -> Iterator[tuple[int, Any]]:
        csv.field_size_limit(sys.maxsize)
        text = as_text(file, marked(peek(file)) or "utf-8", newline="")
        yield from _rows(csv.reader(text, delimiter=separator, strict=True))

    return read


def _rows(reader: Any) -> Iterator[tuple[int, Any]]:
    head = _head(reader)
    while True:
        line = reader.line_num + 1
        try:
            found = next(reader, None)
        except csv.Error as error:
            if "unexpected end" in str(error):
                raise Unreadable(f"line {line} opens a quote that is never closed") from error
            yield line, RowError(f"its quotes are not those of a table ({error}); inside a cell write them twice")
            continue
        if found is None:
            return
        if found:
            yield line, _row(head, found)


def _head(reader: Any) -> list[str]:
    try:
        head: list[str] = next(reader, [])
    except csv.Error as error:
        raise Unreadable(f"the head of the table: {error}") from error
    twice = sorted({name for name in head if head.count(name) > 1})
    if twice:
        raise Unreadable(f"the head of the table names {twice[0][:50]!r} twice: one of the two would be lost")
    return head


def _row(head: list[str], found: list[str]) -> Any:
    if len(found) != len(head):
        return RowError(f"it has not as many cells as the head of the table has ({len(head)})")
    wrong = next((each[0] for each in map(_UNDECODED.search, found) if each), None)
    if wrong:
        return RowError(f"not UTF-8 text (byte 0x{ord(wrong) & 0xFF:02x}); {CONVERT}")
    return {name: _cell(text) for name, text in zip(head, found, strict=True)}


def _cell(text: str) -> Any:
    """Only messages are looked for: an answer that is JSON is a text all the same."""
    if text.startswith("["):
        items = parsed(text)
        if isinstance(items, list) and items and all(_is_message(each) for each in items):
            return items
    return text or None


def _is_message(item: Any) -> bool:
    return isinstance(item, dict) and ("role" in item or "from" in item)


def parquet(file: BinaryIO) -> Iterator[tuple[int, Any]]:
    """Rows of a parquet file, from 1 on."""
    import pyarrow.parquet

    try:
        yield from _numbered(pyarrow.parquet.ParquetFile(file).iter_batches(batch_size=ROWS_AT_ONCE))
    except pyarrow.ArrowException as error:
        raise Unreadable(f"it is no whole parquet file ({_one_line(error)})") from error


def arrow(file: BinaryIO) -> Iterator[tuple[int, Any]]:
    """Rows of an Arrow stream or file, from 1 on."""
    import pyarrow

    try:
        try:
            stream: Any = pyarrow.ipc.open_stream(file)
        except pyarrow.ArrowInvalid:
            file.seek(0)
            found = pyarrow.ipc.open_file(file)
            stream = (found.get_batch(at) for at in range(found.num_record_batches))
        yield from _numbered(stream)
    except pyarrow.ArrowException as error:
        raise Unreadable(f"it is no whole Arrow file ({_one_line(error)})") from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def _numbered(batches: Iterable[Any]) -> Iterator[tuple[int, Any]]:
    number = 0
    for batch in batches:
        for row in batch.to_pylist():
            number += 1
            yield number, of_arrow(row)


def of_arrow(row: dict[str, Any]) -> dict[str, Any]:
    """A row as it was written: Arrow gives every object the keys of all the others, with null for what is lacking."""
    return {key: _without_nulls(value) for key, value in row.items()}


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(each) for key, each in value.items() if each is not None}
    if isinstance(value, list):
        return [_without_nulls(each) for each in value]
    return value
