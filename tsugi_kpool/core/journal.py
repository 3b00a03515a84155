"""The text of the hub's journal: its records, one a line (a write-ahead log).

In front of a record stand the CRC-32 of the line and that of all records up to it, the *chain*: a line that was taken
out whole, put in, or moved leaves every line whole and breaks the chain. The last line may be torn; any other must be
whole.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Iterable
from dataclasses import dataclass

import msgspec

from .records import AnyRecord, Began

FORMAT = 2
"""Of a journal. 1 had no chain."""
_FORMAT_1 = re.compile(rb"[0-9a-f]{8} \{")


class Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One line of a journal."""

    at_s: float
    """Seconds since the run began, not counting those in which there was no hub."""
    record: AnyRecord


class BadJournal(ValueError):
    """A journal from which no hub can continue; the text says where and why."""


@dataclass(frozen=True)
class Parsed:
    """What a journal holds."""

    entries: list[Entry]
    whole_bytes: int
    """Length of the journal without a torn last line."""
    chain: int = 0
    """Of its last whole line."""


def encode_entry(entry: Entry, chain: int = 0) -> tuple[bytes, int]:
    """Return an entry as a line of the journal, and the chain after it; `chain` is that of the line before."""
    text = msgspec.json.encode(entry)
    # msgspec writes NaN, which a member may report, as null. json writes it as NaN, but takes ten times as long.
    if b"null" in text:
        text = json.dumps(msgspec.to_builtins(entry), separators=(",", ":")).encode()
    chain = zlib.crc32(text, chain)
    summed = b"%08x %s" % (chain, text)
    return b"%08x %s\n" % (zlib.crc32(summed), summed), chain


def encode_entries(entries: Iterable[Entry], chain: int = 0) -> tuple[bytes, int]:
    """Return consecutive lines, and the chain of the last."""
    lines = []
    for entry in entries:
        line, chain = encode_entry(entry, chain)
        lines.append(line)
    return b"".join(lines), chain


def parse(data: bytes) -> Parsed:
    """Read a journal.

    A process that dies while it writes leaves a last line without its end, or with another checksum. Nothing that
    follows from that line was sent, so it is dropped.

    Raises:
        BadJournal: a line before the last is damaged, a whole line is no record of ours, a line does not follow the
            one before it, or the journal has another format.
    """
    if _FORMAT_1.match(data):
        raise BadJournal(f"it has format 1, which has no chain; this version of Tsugi reads {FORMAT}")
    entries: list[Entry] = []
    whole = chain = 0
    while whole < len(data):
        end = data.find(b"\n", whole) + 1
        number = len(entries) + 1
        said, text = _text(data[whole:end])
        if text is None:
            if end and end < len(data):
                raise BadJournal(f"line {number} (byte {whole}) is damaged, and others follow it")
            break
        chain = zlib.crc32(text, chain)
        if said != b"%08x" % chain:
            raise BadJournal(f"line {number} (byte {whole}) does not follow: one before it was taken out or put in")
        entries.append(_entry(text, number))
        if isinstance(began := entries[0].record, Began) and began.format != FORMAT:
            raise BadJournal(f"it has format {began.format}, this version of Tsugi reads {FORMAT}")
        whole = end
    return Parsed(entries, whole, chain if entries else 0)


def _entry(text: bytes, number: int) -> Entry:
    try:
        return msgspec.convert(json.loads(text), Entry)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise BadJournal(f"line {number} is no record of this version of Tsugi: {error}") from error


def _text(line: bytes) -> tuple[bytes, bytes | None]:
    """Return the chain that a line names, and its JSON; None in place of the JSON when the line is not whole."""
    crc, _, summed = line.rstrip(b"\n").partition(b" ")
    chain, _, text = summed.partition(b" ")
    return chain, text if line and crc == b"%08x" % zlib.crc32(summed) else None
