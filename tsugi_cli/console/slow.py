"""Slow replicas in words: how much, since when, from what to what, and why. The caller gives the time of day."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any

import msgspec

from tsugi_cli.record.records import number
from tsugi_kpool.core.diagnosis import Part, seconds_text
from tsugi_kpool.core.messages import FleetStatus, ReplicaStatus, Slowness

from .format import NONE, safe

_WHAT = {Part.STEP.value: "step", Part.ROUND.value: "a round's transfer"}


def slow_lines(status: FleetStatus, now: datetime) -> list[str]:
    """Return a line for each replica that is slow or jitters, the slowest first."""
    slow = sorted((row for row in status.replicas if row.slowness), key=_factor, reverse=True)
    lines = [f"{_who(row)}: {slowness_text(_facts(row.slowness), now)}" for row in slow if row.slowness]
    jittery = [row for row in status.replicas if row.jitters]
    return lines + [f"{_who(row)}: jitters, a tenth of its steps takes over twice as long" for row in jittery]


def slowness_text(facts: Mapping[str, Any], now: datetime | None) -> str:
    """Return one replica's slowness in words, from the fields of core.messages.Slowness or of a "slow" event."""
    before, after = _seconds(facts.get("before_s")), _seconds(facts.get("after_s"))
    what = _WHAT.get(str(facts.get("part")), "step and waits")
    factor = number(facts.get("factor"))
    head = f"{NONE if factor is None else f'{factor:.1f}'}x slow"
    head = f"its link makes rounds {head}" if facts.get("part") == Part.ROUND else head
    since_s = number(facts.get("since_s"))
    if since_s is None:
        how = f"{head} against the fleet ({what} {after}, the others' {before})"
    else:
        moment = f" since {now - timedelta(seconds=since_s):%H:%M:%S}" if now is not None else ""
        how = f"{head}{moment} ({what} {before} → {after})"
    evidence = ", ".join(safe(text) for text in _texts(facts.get("evidence")))
    return f"{how}; cause: {safe(facts.get('cause', '?'))}" + (f" ({evidence})" if evidence else "")


def slow_event(event: Mapping[str, Any]) -> str:
    """Return a "slow" event in words, with the time of day at which it began."""
    return f"replica {safe(event.get('replica', '?'))}: {slowness_text(event, _time(event.get('time')))}"


def slow_brief(event: Mapping[str, Any]) -> str:
    """Return the same for a line that is cut at the window's edge: who, how much and why come first."""
    factor, evidence = number(event.get("factor")), [safe(text) for text in _texts(event.get("evidence"))]
    link = event.get("part") == Part.ROUND
    much = "slow link" if link else f"{NONE if factor is None else f'{factor:.1f}'}x slow"
    why = "" if link else f", {safe(event.get('cause', '?'))}"
    return f"replica {safe(event.get('replica', '?'))}: {much}{why}" + (
        f": {', '.join(evidence)}" if evidence else ""
    )


def _texts(value: object) -> Iterable[object]:
    return value if isinstance(value, list | tuple) else ()


def _time(text: object) -> datetime | None:
    try:
        return datetime.fromisoformat(str(text))
    except ValueError:
        return None


def _facts(slowness: Slowness) -> dict[str, Any]:
    return msgspec.structs.asdict(slowness)


def _factor(row: ReplicaStatus) -> float:
    return row.slowness.factor if row.slowness else 0.0


def _who(row: ReplicaStatus) -> str:
    return f"replica {row.replica} ({safe(row.host)})"


def _seconds(value: object) -> str:
    known = number(value)
    return NONE if known is None else seconds_text(known)
