"""What a file's first bytes say: the encoding of a text, or that it is no text at all."""

from __future__ import annotations

import codecs
import io
from typing import BinaryIO, TextIO, cast


class Unreadable(Exception):
    """Why no row of a file can be read, in one line without its name: whoever opened it adds that."""


MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
"""What a file begins with -> how it is read. That of UTF-32 begins as that of UTF-16 does."""
KINDS = (
    (b"PK\x03\x04", "it is a zip archive or a sheet of Excel: unpack it, or save it as .csv"),
    (b"\x1f\x8b", "it is packed with gzip: its name must end with .gz"),
    (b"\x28\xb5\x2f\xfd", "it is packed with zstd: its name must end with .zst"),
    (b"PAR1", "it is a parquet file: its name must end with .parquet"),
    (b"ARROW1", "it is an Arrow file: its name must end with .arrow"),
)
"""What is often met under a wrong name."""
HEAD_BYTES = 4096


def peek(file: BinaryIO) -> bytes:
    """The file's first bytes, which are still to be read."""
    return cast(io.BufferedReader, file).peek(HEAD_BYTES)


def marked(head: bytes) -> str | None:
    """The encoding that a file's first bytes name.

    Raises:
        Unreadable: they are those of an encoding without its mark, or of no text.
    """
    for mark, encoding in MARKS:
        if head.startswith(mark):
            return encoding
    for mark, words in KINDS:
        if head.startswith(mark):
            raise Unreadable(words)
    if b"\0" in head[:4]:
        raise Unreadable("it looks like UTF-16 or UTF-32 without a byte order mark; save it as UTF-8")
    return None


def as_text(file: BinaryIO, encoding: str, newline: str = "\n") -> TextIO:
    """As text whose lines can be counted to the end: what cannot be decoded stands there as half of a character."""
    errors = "surrogateescape" if encoding.startswith("utf-8") else "surrogatepass"
    return io.TextIOWrapper(file, encoding=encoding, errors=errors, newline=newline)
