"""Records of the hub's durable state, and the journal that holds them (a write-ahead log).

The hub writes a record down before it sends what the record justifies: what it acknowledged or ordered outlives it. A
journal is text: one record a line. In front of it stand the CRC-32 of the line and that of all records up to it, the
*chain*: a line that was taken out whole, put in, or moved leaves every line whole and breaks the chain. The last line
may be torn; any other must be whole.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Iterable
from dataclasses import dataclass

import msgspec

from .diagnosis import Parts
from .messages import Evaluated, Fire, Hello, Lease, Reduced
from .messages.facts import MachineFacts
from .renamed import key_of, tag_of


class Record(msgspec.Struct, frozen=True, tag=tag_of, rename=key_of, forbid_unknown_fields=True):
    """Base of all records. Replayed in order, they give the hub's durable state."""


FORMAT = 2
"""Of a journal. 1 had no chain."""


class Began(Record, frozen=True):
    """The run that this journal is of: always the first record."""

    run: str
    config_hash: str
    replicas: int
    format: int = 1
    """How its lines are written: see FORMAT."""


class Joined(Record, frozen=True):
    """A replica was let in."""

    hello: Hello


class SlotGiven(Record, frozen=True):
    """Somebody from another machine is to be this replica."""

    ticket: str
    replica: int


class SeatFreed(Record, frozen=True):
    """The slot of this replica is free again: somebody else may take it.

    Before the run has begun the process that had joined is forgotten with it.
    """

    replica: int
    reason: str = ""


class TurnedSlow(Record, frozen=True):
    """A replica has turned slow. From this record the next hub knows since when, and how fast it was before."""

    replica: int
    incarnation: str
    trained_s: float | None
    """The replica's own `trained_s` when it turned slow: the only clock that both hubs share. None: it was slow from
    its first step on."""
    before: Parts
    before_level: float
    after: Parts
    part: str
    cause: str
    evidence: tuple[str, ...]
    usual: MachineFacts
    """Its machine before."""
    rtt_before_s: float | None = None
    transfer_before_s: float | None = None
    """Seconds of a usual round's collective before."""


class Recovered(Record, frozen=True):
    """A replica is slow no more."""

    replica: int
    seconds: float = 0.0
    """How long it was."""
    step_s: float = 0.0
    """What a step takes it now."""


class GenerationOpened(Record, frozen=True):
    """The group of these members was ordered."""

    generation: int
    members: tuple[int, ...]
    newcomers: tuple[int, ...] = ()
    donor: int = 0


class KeyStored(Record, frozen=True):
    """A key of the generation's rendezvous store was set."""

    key: str
    value: bytes


class Leased(Record, frozen=True):
    """A range of data was granted."""

    replica: int
    lease: Lease


class RoundFired(Record, frozen=True):
    """A round was ordered. One with the reason `final` ships all that is left."""

    fire: Fire


class RoundReduced(Record, frozen=True):
    """A member's collective has ended. Values that are equal on all members are in the first one's record only."""

    reduced: Reduced


class RoundCommitted(Record, frozen=True):
    """The round in flight was committed."""

    round: int
    version: int
    digest: str
    pooled: tuple[int, ...]
    """Steps that the members had buffered for each adapter. Routing chose the next round's adapters by these."""
    step_s: float = 0.0
    """Duration of a step by the members' newest beats. `kpool.k=auto` chose by it."""


class EvaluationGiven(Record, frozen=True):
    """A replica was told to evaluate the anchors of this version, while it trains."""

    replica: int
    version: int
    at: float
    """How far the run had come, in the unit of `evaluate.every`."""


class Evaluation(Record, frozen=True):
    """A replica's sums of an evaluation."""

    evaluated: Evaluated


PARTED = "its user stopped it"
"""Reason of a replica that left with nothing uncommitted."""


class Left(Record, frozen=True):
    """A replica has left: at its end, or in the middle of the run."""

    replica: int
    reason: str = ""
    """Empty: it had finished."""
    trained: int = 0
    """Samples that it had trained on, by its beats; without a beat all that it had been leased."""
    quarantined: bool = False


class Struck(Record, frozen=True):
    """A replica has thrown away its buffer, which was unusable."""

    replica: int
    reason: str = ""
    tokens: int = 0


class Skipped(Record, frozen=True):
    """A replica has left out micro-batches whose loss is no finite number."""

    replica: int
    incarnation: str
    seq: int
    """Of the message: the same one may come twice."""
    reason: str
    batches: int
    tokens: int


class Interrupted(Record, frozen=True, omit_defaults=True):
    """The run ends early: its owner asked for that, or no replica is left."""

    over: bool = False
    """Nobody is left: this is the end."""
    deserted: bool = False
    """... because the last replica was taken back."""
    early: bool = False
    """Nobody asked: the evaluations found no lower loss any more (`train.stop_early.patience`)."""


class Finished(Record, frozen=True):
    """Every contribution is committed."""


class RunFailed(Record, frozen=True):
    """The run could not go on."""

    reason: str
    replica: int | None
    quorum: bool = False
    """Too few replicas were left."""


AnyRecord = (
    Began | Joined | GenerationOpened | KeyStored | Leased | RoundFired | RoundReduced | RoundCommitted
    | Evaluation | Left | Interrupted | Finished | RunFailed | SlotGiven | SeatFreed | TurnedSlow | Recovered
    | Struck | Skipped | EvaluationGiven
)  # fmt: skip


class Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One line of a journal."""

    at_s: float
    """Seconds since the run began, not counting those in which there was no hub."""
    record: AnyRecord


_FORMAT_1 = re.compile(rb"[0-9a-f]{8} \{")


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
    """Return an entry as a line of the journal, and the chain after it; `chain` is that of the line before.

    msgspec's JSON, a tenth of the work, turns NaN, which a member may report, into null.
    """
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
