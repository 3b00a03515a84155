"""Messages, records and events as words: the same value is always the same text."""

from __future__ import annotations

from typing import Any

from tsugi_kpool.core import messages, records
from tsugi_kpool.core.effects import CheckpointOrdered, CheckpointPart
from tsugi_kpool.core.events import Event

FIELDS: dict[type, str] = {
    messages.Hello: "incarnation config_hash",
    messages.Ack: "seq",
    messages.Refused: "reason fenced",
    messages.Generation: "generation members version newcomers donor",
    messages.Beat: "generation version reduced steps pooled drained",
    messages.LeaseRequest: "ticket",
    messages.Lease: "ticket start stop",
    messages.Fire: "generation round adapters version reason",
    messages.Reduced: "seq round digest weight durable weights",
    messages.Broken: "seq generation round reason",
    messages.Commit: "generation round save",
    messages.Abort: "generation round reason",
    messages.Drain: "reason",
    messages.Refill: "",
    messages.Saved: "seq version final file",
    messages.Finish: "version evaluate",
    messages.Bye: "seq",
}
"""What is shown of a message: what this conversation is about, in this order."""
TOLD = frozenset({"joined", "generation", "fired", "committed", "finished", "aborted"})
"""Events that say what the record before them, or the order after them, says."""

UNTOLD = frozenset({"host", "incarnation"})
"""Of an event."""


def message_words(message: messages.Message) -> str:
    """A message with the fields that matter here."""
    names = FIELDS[type(message)].split()
    if isinstance(message, messages.Refused) and message.fenced:
        names = ["fenced"]  # its reason has been told, of the same replica, when it left
    return named(type(message).__name__, {name: getattr(message, name) for name in names})


def record_words(record: records.AnyRecord) -> str:
    """A record of the journal, by its name and what it is about."""
    match record:
        case records.Joined():
            about: object = record.hello.replica
        case records.GenerationOpened():
            about = record.generation
        case records.Leased():
            about = f"{record.replica} [{record.lease.start}, {record.lease.stop})"
        case records.RoundFired():
            about = record.fire.round
        case records.RoundReduced():
            about = record.reduced.replica
        case records.RoundCommitted():
            about = record.round
        case _:
            about = getattr(record, "replica", None)
    return type(record).__name__ if about is None else f"{type(record).__name__} {about}"


def event_words(told: Event | CheckpointOrdered | CheckpointPart) -> str | None:
    """What the hub tells its owner; None where a record has just said it."""
    if isinstance(told, CheckpointPart):
        saved = told.saved
        return named("checkpoint_part", {"replica": saved.replica, "file": saved.file, "error": saved.error})
    if isinstance(told, CheckpointOrdered):
        facts = {name: getattr(told, name) for name in ("version", "final", "done", "tokens")}
        return named("checkpoint_ordered", facts)
    if told.name in TOLD:
        return None
    return named(told.name, {name: value for name, value in told.data.items() if name not in UNTOLD})


def named(name: str, values: dict[str, Any]) -> str:
    """A name, then `key=value` for everything that is worth a word: 0 is, nothing and no are not."""
    told = {key: value for key, value in values.items() if value not in ("", (), []) and value is not None}
    return " ".join([name, *(f"{key}={value_words(value)}" for key, value in told.items() if value is not False)])


def value_words(value: Any) -> str:
    """One value: lists without brackets, ranges as intervals, floats to three digits."""
    if isinstance(value, float):
        return f"{value:.3g}"
    if isinstance(value, (list, tuple)):
        return ",".join(map(_inner, value))
    if value is True:
        return "yes"
    return f'"{value}"' if isinstance(value, str) and " " in value else str(value)


def _inner(value: Any) -> str:
    return f"[{value[0]}, {value[1]})" if isinstance(value, tuple) else value_words(value)
