"""The records of events.jsonl in words. Their values may come from another machine, and are made safe."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tsugi_cli.record.measures import besides
from tsugi_cli.record.records import number, numbers
from tsugi_kpool.core.events import Name

from .format import duration, safe, size, step_time
from .slow import slow_brief, slow_event

ROUND_EVENTS = frozenset({Name.FIRED, Name.COMMITTED})
"""Events that are too frequent for a line each: the console folds them into one, plain mode leaves them out."""
_TEXTS: dict[str, str] = {
    Name.JOINED: "replica {replica} joined from {host}, pid {pid}",
    Name.SEAT_FREED: "replica {replica}'s place is free again, another may take it: {reason}",
    Name.TURNED_AWAY: "a machine ({host}) could not join: {reason}",
    Name.GENERATION: "generation {generation}: replicas {members}",
    Name.FIRED: "round {round} fired ({reason}): adapters {adapters}, {pooled} steps",
    Name.COMMITTED: "round {round} committed in {seconds}, {payload_bytes}",
    Name.LEFT: "replica {replica} left: {reason}; {again}",
    Name.DISCARDED: "replica {replica} throws away what it has buffered and begins again from the anchors: {reason}",
    Name.SKIPPED: "replica {replica} leaves out what has no finite loss: {reason}",
    Name.PARTING: "replica {replica} is stopped by its user: it leaves when what it has is committed",
    Name.UNREACHED: "replica {replica} cannot reach replica {other} at {address}: {reason}",
    Name.RESTARTED: "replica {replica} is started again, for the {times}. time",
    Name.QUORUM_LOST: "{live} of at least {min_replicas} replicas are left: training pauses until they are back",
    Name.QUORUM_BACK: "{live} replicas are there again: training goes on",
    Name.ABORTED: "round {round} aborted: {reason}",
    Name.EVALUATED: "replica {replica} has evaluated its share, {stage}",
    Name.EVALUATING: "replica {replica} evaluates version {version} between its steps",
    Name.STOPPED_EARLY: "stops early: {evaluations} evaluations in a row found no lower loss than version {version}'s"
    " {loss}",
    Name.SIZED: "replica {replica} takes {micro_batch} samples a step, before {was}, to be done in {period_s}",
    Name.DRAINED: "every replica has ended its last step: one round ships what is left",
    Name.FINISHED: "finished at version {version}",
    Name.STOPPED: "stopped at version {version}, before the data were used up",
    Name.FAILED: "replica {replica} failed: {reason}",
    Name.INTERRUPTED: "interrupted: what is in flight is still committed",
    Name.DESERTED: "the last replica has left at version {version}, and the anchors with it: the run ends here",
    Name.RESUMED: "the hub goes on from its journal, at version {version}",
    Name.JOURNAL_BEHIND: "the hub's journal cannot be written ({reason}): training goes on, "
    "a hub that dies now is lost",
    Name.RECORDS_LOST: "events and metrics cannot be written ({reason}): training goes on, the run's files lack them",
    Name.JOURNAL_WHOLE: "the hub's journal is whole again",
    Name.RECOVERED: "replica {replica} is as fast as before again, after {seconds}",
    Name.LINK_RECOVERED: "replica {replica}'s link is as fast as before again",
    Name.CHECKPOINT: "checkpoint {checkpoint}: {samples} of {samples_total} samples, {payload_bytes}, in {seconds}",
    Name.CHECKPOINT_FAILED: "checkpoint {checkpoint} could not be written ({reason}): training goes on",
    Name.NOTE: "{text}",
    Name.REFUSED: "{times} refused ({kind}), {in_all} in all; training is not touched",
    Name.SINK_FAILED: "{sink} gets no more of this run, which goes on: {reason}",
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
    if name == Name.SLOW:
        return slow_event(event)
    if name == Name.EVALUATED and number(event.get("version")):
        return _evaluated(event)
    if name == Name.FAILED and event.get("replica") is None:
        return f"the run has failed: {_field('reason', event.get('reason', '?'))}"  # by nobody's fault among them
    fields = _Fields({k: _field(k, v) for k, v in event.items() if k not in ("time", "event")})
    if name in _TEXTS:
        return _TEXTS[name].format_map(fields)
    return " ".join([safe(name), *(f"{safe(k)}={v}" for k, v in fields.items())])


def _evaluated(event: Mapping[str, Any]) -> str:
    loss = number(event.get("loss"))
    found = "found no finite loss" if loss is None else f"has an eval loss of {loss:.4f}"
    sums = event.get("sums")
    more = besides(numbers(sums))
    found += "".join(f", {safe(name)} {value:.4f}" for name, value in more.items())
    return f"version {safe(event.get('version'))} {found}, by replica {safe(event.get('replica', '?'))}"


def event_time(event: Mapping[str, Any]) -> str:
    """Return the time of day of a record, in the time zone that it was written in."""
    _, _, time = safe(event.get("time", "")).partition("T")
    return time[:8] if len(time) >= 8 else "--:--:--"


def plain_event(event: Mapping[str, Any]) -> str:
    """Return a record of events.jsonl as one line."""
    return f"{event_time(event)}  {event_text(event)}"


def brief_event(event: Mapping[str, Any]) -> str:
    """Return a record as a line of the console, which the window's edge may cut."""
    if event.get("event") == Name.SLOW:
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
