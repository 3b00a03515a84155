"""The records of events.jsonl in words. Their values may come from another machine, and are made safe."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tsugi_cli.record.records import number

from .format import duration, safe, size, step_time
from .slow import slow_brief, slow_event

ROUND_EVENTS = frozenset({"fired", "committed"})
"""Events that are too frequent for a line each: the console folds them into one, plain mode leaves them out."""
_TEXTS = {
    "joined": "replica {replica} joined from {host}, pid {pid}",
    "seat_freed": "replica {replica}'s place is free again, another may take it: {reason}",
    "generation": "generation {generation}: replicas {members}",
    "fired": "round {round} fired ({reason}): adapters {adapters}, {pooled} steps",
    "committed": "round {round} committed in {seconds}, {payload_bytes}",
    "left": "replica {replica} left: {reason}; {again}",
    "discarded": "replica {replica} throws away what it has buffered and begins again from the anchors: {reason}",
    "parting": "replica {replica} is stopped by its user: it leaves when what it has is committed",
    "restarted": "replica {replica} is started again, for the {times}. time",
    "quorum_lost": "{live} of at least {min_replicas} replicas are left: training pauses until they are back",
    "quorum_back": "{live} replicas are there again: training goes on",
    "aborted": "round {round} aborted: {reason}",
    "evaluated": "replica {replica} has evaluated its share, {stage}",
    "sized": "replica {replica} takes {micro_batch} samples a step, before {was}, to be done in {period_s}",
    "drained": "no more data: every replica has ended its last step",
    "finished": "finished at version {version}",
    "stopped": "stopped at version {version}, before the data were used up",
    "failed": "replica {replica} failed: {reason}",
    "interrupted": "interrupted: what is in flight is still committed",
    "deserted": "the last replica has left at version {version}, and the anchors with it: the run ends here",
    "resumed": "the hub goes on from its journal, at version {version}",
    "journal_behind": "the hub's journal cannot be written ({reason}): training goes on, a hub that dies now is lost",
    "records_lost": "events and metrics cannot be written ({reason}): training goes on, the run's files lack them",
    "journal_whole": "the hub's journal is whole again",
    "recovered": "replica {replica} is as fast as before again, after {seconds}",
    "link_recovered": "replica {replica}'s link is as fast as before again",
    "checkpoint": "checkpoint {checkpoint}: {samples} of {samples_total} samples, {payload_bytes}, in {seconds}",
    "checkpoint_failed": "checkpoint {checkpoint} could not be written ({reason}): training goes on",
    "note": "{text}",
    "refused": "{times} refused ({kind}), {in_all} in all; training is not touched",
}


class _Fields(dict[str, str]):
    def __missing__(self, key: str) -> str:
        return "?"


def _field(key: str, value: object) -> str:
    """Return one value of an event in words."""
    if key == "seconds":
        return duration(value)
    if key == "period_s":
        return step_time(number(value) or 0.0)
    if key == "payload_bytes":
        return size(value)
    if key == "again":
        return f"{value} samples are trained again" if value != 1 else "1 sample is trained again"
    if isinstance(value, list | tuple):
        return f"{len(value)} of them" if len(value) > 8 else ", ".join(safe(v) for v in value)
    return safe(f"{value:.4g}" if isinstance(value, float) else value)


def event_text(event: Mapping[str, Any]) -> str:
    """Return a record of events.jsonl in words, without its time."""
    name = str(event.get("event", "?"))
    if name == "slow":
        return slow_event(event)
    fields = _Fields({k: _field(k, v) for k, v in event.items() if k not in ("time", "event")})
    if name in _TEXTS:
        return _TEXTS[name].format_map(fields)
    return " ".join([safe(name), *(f"{safe(k)}={v}" for k, v in fields.items())])


def event_time(event: Mapping[str, Any]) -> str:
    """Return the time of day of a record, in the time zone that it was written in."""
    _, _, time = safe(event.get("time", "")).partition("T")
    return time[:8] if len(time) >= 8 else "--:--:--"


def plain_event(event: Mapping[str, Any]) -> str:
    """Return a record of events.jsonl as one line."""
    return f"{event_time(event)}  {event_text(event)}"


def brief_event(event: Mapping[str, Any]) -> str:
    """Return a record as a line of the console, which the window's edge may cut."""
    if event.get("event") == "slow":
        return f"{event_time(event)}  {slow_brief(event)}"
    return plain_event(event)


def plain_evaluated(replicas: int, event: Mapping[str, Any]) -> str:
    """Return one line for replicas that have evaluated their shares one after the other; this is the last one's
    event."""
    return f"{event_time(event)}  {replicas} replicas have evaluated their shares, {safe(event.get('stage', '?'))}"


def plain_rounds(first: int, event: Mapping[str, Any]) -> str:
    """Return one line for all rounds from `first` to the one of this "committed" event."""
    rounds = f"rounds {first} to {_field('round', event.get('round'))} committed, the last in"
    return f"{event_time(event)}  {rounds} {duration(event.get('seconds'))}, {size(event.get('payload_bytes'))}"
