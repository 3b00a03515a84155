"""Older names: frames and journals still use them, and files of older runs are read by them.

A name on the wire or in a journal is an identity, like a field's number elsewhere: it outlives the word that the code
uses. So both tables go one way only, from the code's word to the one that is written (docs/decisions/0039).

Three more things keep an older word where they are made: a store's keys (`epoch3/...`), the digest of an unusable
round (`spoilt ...`), and the tensors of a checkpoint's residuals (`owed.`).
"""

from __future__ import annotations

from typing import Any

TAGS = {
    "Generation": "Epoch",
    "GenerationOpened": "EpochOpened",
    "Reduced": "Landed",
    "RoundReduced": "RoundLanded",
    "Slot": "Place",
    "SlotGiven": "PlaceGiven",
    "SlotRequest": "PlaceRequest",
}
"""Class of a message or record -> its type in a frame or a journal, if that is another word."""
FIELDS = {
    "generation": "epoch",
    "lag_steps": "lag_micro",
    "reduced": "landed",
    "step": "micro_step",
    "step_s": "micro_step_s",
    "steps": "micro_steps",
    "sync_wait": "hold",
    "unusable": "spoilt",
}
"""Field -> its key there."""
EVENTS = {"epoch": "generation", "micro_step": "step"}
"""Events of older runs, by the names that they have now."""
VALUES = {"micro-step": "step", "hold": "sync wait"}
"""Values of core.diagnosis.Part in older runs."""
_EVENT_FIELDS = {"held_s": "delayed_s", "held_for": "delayed_for"}
_NOW = {old: new for new, old in FIELDS.items()} | _EVENT_FIELDS


def tag_of(name: str) -> str:
    """Return the type of a message or record on the wire, from the name of its class."""
    return TAGS.get(name, name)


def key_of(name: str) -> str | None:
    """Return the key of a field on the wire; None where it is the field's own name."""
    return FIELDS.get(name)


def renewed(record: Any) -> Any:
    """Return a record of events.jsonl, metrics.jsonl, status.jsonl or summary.json under today's names.

    Args:
        record: Decoded JSON of this version or an older one; not changed.
    """
    if isinstance(record, list | tuple):
        return [renewed(each) for each in record]
    if not isinstance(record, dict):
        return record
    found = {_NOW.get(name, name): renewed(value) for name, value in record.items()}
    if isinstance(event := found.get("event"), str):
        found["event"] = EVENTS.get(event, event)
    if isinstance(part := found.get("part"), str):
        found["part"] = VALUES.get(part, part)
    return found
