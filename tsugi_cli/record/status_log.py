"""status.jsonl: the fleet's status every few seconds, small enough to keep, for replays and after the end."""

from __future__ import annotations

import math
from collections import deque
from typing import Any

import msgspec
from msgspec.structs import replace

from tsugi_kpool.core.effects import FleetStage
from tsugi_kpool.core.hub.health import Health
from tsugi_kpool.core.messages import FleetStatus, ReplicaStatus

from .records import Tail
from .rows import choose
from .run_dir import RunPaths

BYTES_PER_S = 400.0
"""The file grows by at most this on average: 1.44 MB an hour, about as much as two replicas' steps in
metrics.jsonl at one a second."""
EVERY_S = 2.0
"""Least time between two records, unless the stage changes."""
ROWS = 32
"""Rows of a record: of a large fleet those that the console would show."""
ENDS = frozenset({FleetStage.FINISHED, FleetStage.INTERRUPTED, FleetStage.FAILED})
DIGITS = 4
"""Significant digits of a figure, as many as a picture can show."""


class StatusPacing:
    """Decides when the next status is recorded."""

    def __init__(self) -> None:
        self._stage = ""
        self._next_s = 0.0

    def due(self, status: FleetStatus) -> bool:
        """Return whether this status is due."""
        return status.elapsed_s >= self._next_s or status.stage != self._stage

    def written(self, status: FleetStatus, size: int) -> None:
        """Count a record of `size` bytes: after a large one the next comes later."""
        self._stage = status.stage
        self._next_s = status.elapsed_s + max(EVERY_S, size / BYTES_PER_S)


def compact(status: FleetStatus) -> dict[str, Any]:
    """Return a status as a record: figures rounded, defaults left out, only the most important replicas."""
    shown, hidden = choose(status.replicas, ROWS)
    joined = max(status.joined, len(shown) + len(hidden))
    record = _plain(replace(status, replicas=(), joined=joined), FleetStatus)
    return {**record, "replicas": [_plain(row, ReplicaStatus) for row in shown]}


def _plain(struct: msgspec.Struct, kind: type[msgspec.Struct]) -> dict[str, Any]:
    built: dict[str, Any] = msgspec.to_builtins(struct)
    return {
        field.name: _rounded(built[field.encode_name])
        for field in msgspec.structs.fields(kind)
        if getattr(struct, field.name) != field.default
    }


def _rounded(value: Any) -> Any:
    """Round a float; None for values that JSON lacks, such as NaN."""
    if not isinstance(value, float):
        return value
    return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None


def restore(record: dict[str, Any]) -> FleetStatus | None:
    """Return the status of a record, or None when it holds none. Fields of newer versions are left out."""
    rows = record.get("replicas")
    if not isinstance(record.get("stage"), str):
        return None
    try:
        listed = [_known(row, ReplicaStatus, BLANK_ROW) for row in (rows if isinstance(rows, list) else [])]
        return msgspec.convert({**_known(record, FleetStatus, BLANK), "replicas": listed}, FleetStatus)
    except (msgspec.ValidationError, AttributeError):
        return None


def last_status(paths: RunPaths) -> FleetStatus | None:
    """Return how a run stood when it ended; None while it goes on, or when it has recorded no end.

    What spoke against a fleet that trained is over with the run; only a failure stays.
    """
    if not paths.summary.exists():
        return None
    newest = deque(Tail(paths.status).read(), maxlen=1)
    status = restore(newest[0]) if newest else None
    if status is None or status.stage not in ENDS:
        return None
    return status if status.stage == FleetStage.FAILED else replace(status, health=Health.HEALTHY, health_reasons=())


def _known(record: dict[str, Any], kind: type[msgspec.Struct], blank: dict[str, Any]) -> dict[str, Any]:
    """Return a message's fields by their keys on the wire, from a record that has their own names."""
    found = blank | {name: value for name, value in record.items() if value is not None}
    return {field.encode_name: found[field.name] for field in msgspec.structs.fields(kind) if field.name in found}


BLANK: dict[str, Any] = {
    "run": "", "stage": "gathering", "expected": 0, "generation": 0, "version": 0, "elapsed_s": 0.0,
    "samples_done": 0, "samples_total": 0, "eta_s": None, "tokens": 0, "tokens_per_s": 0.0, "goodput": None,
    "loss": None, "firing": (), "rounds": {}, "aborted": 0, "pool_text": "", "trigger_text": "", "replicas": (),
}  # fmt: skip
"""The status of a run of which nothing is known."""
BLANK_ROW: dict[str, Any] = {
    "host": "", "state": "training", "steps": 0, "samples": 0, "tokens": 0, "tokens_per_s": 0.0,
    "step_s": 0.0, "lag_s": 0.0, "lag_steps": 0, "fill": 0.0, "share": 0.0, "sent_bytes": 0, "silent_s": 0.0,
}  # fmt: skip
"""The row of a replica of which nothing else is known."""
