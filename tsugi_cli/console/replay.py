"""Replay of a run from its files: status.jsonl, events.jsonl and metrics.jsonl, in the order of their times."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import msgspec

from tsugi_cli.record.records import Tail, number, seconds
from tsugi_cli.record.run_dir import RunPaths
from tsugi_cli.record.status_log import BLANK, BLANK_ROW, restore
from tsugi_kpool.core.effects import FleetStage
from tsugi_kpool.core.events import Name
from tsugi_kpool.core.messages import FleetStatus, ReplicaStatus
from tsugi_kpool.errors import ConfigError

from .console import Console

FRAMES_PER_S = 10.0
FAST_S = 6.0
"""Duration of a replay without --speed, however long the run was."""
UNPACED_S = 1.0
"""Seconds of the run between two statuses where nobody waits: lines come every ten seconds of it."""
_STAGES: dict[str, FleetStage] = {
    Name.GENERATION: FleetStage.TRAINING,
    Name.DRAINED: FleetStage.DRAINING,
    Name.FINISHED: FleetStage.FINISHED,
    Name.FAILED: FleetStage.FAILED,
    Name.STOPPED: FleetStage.INTERRUPTED,
    Name.DESERTED: FleetStage.INTERRUPTED,
}


class Past:
    """The records of a run, one after the other, and the status that they add up to.

    A record of status.jsonl is a whole status. Between two of them, and in a run without any, the steps of
    metrics.jsonl and the events update it.
    """

    def __init__(self, run: str) -> None:
        self._base = FleetStatus(**(BLANK | {"run": run}))
        self._rows: dict[int, ReplicaStatus] = {}
        self._base_s: float | None = None
        self._now_s = 0.0
        self._losses: dict[int, float] = {}

    def take(self, kind: str, record: dict[str, Any], at_s: float) -> None:
        """Add a record of this kind (status, events or metrics)."""
        self._base_s = at_s if self._base_s is None else self._base_s
        self._now_s = at_s
        if kind == "status":
            self._whole(record, at_s)
        elif kind == "metrics":
            self._step(record)
        else:
            self._event(record)

    def status(self) -> FleetStatus:
        """Return the fleet's status at the newest record."""
        rows = tuple(self._rows[replica] for replica in sorted(self._rows))
        since_s = self._now_s - (self._base_s or self._now_s)
        done, tokens = sum(row.samples for row in rows), sum(row.tokens for row in rows)
        return msgspec.structs.replace(
            self._base,
            replicas=rows,
            elapsed_s=self._base.elapsed_s + since_s,
            samples_done=max(self._base.samples_done, done),
            tokens=max(self._base.tokens, tokens),
            loss=self._loss(),
        )

    def _whole(self, record: dict[str, Any], at_s: float) -> None:
        status = restore(record)
        if status is not None:
            self._base, self._base_s, self._losses = status, at_s, {}
            self._rows = {row.replica: row for row in status.replicas}

    def _step(self, record: dict[str, Any]) -> None:
        which = record.get("replica")
        if not isinstance(which, int) or which not in self._rows:
            return
        figures = {name: _count(record.get(name)) for name in ("steps", "samples", "tokens")}
        step_s = number(record.get("step_s")) or 0.0
        self._rows[which] = msgspec.structs.replace(self._rows[which], step_s=step_s, **figures)
        loss = number(record.get("loss_mean", record.get("loss")))  # earlier versions have the mean only, as "loss"
        if loss is not None:
            self._losses[which] = loss

    def _event(self, record: dict[str, Any]) -> None:
        name = record.get("event")
        if name in _STAGES:
            self._base = msgspec.structs.replace(self._base, stage=_STAGES[name])
        elif name == Name.COMMITTED:
            version = max(self._base.version, _count(record.get("version")))
            self._base = msgspec.structs.replace(self._base, version=version, firing=())
        elif name == Name.JOINED and isinstance(record.get("replica"), int) and record["replica"] not in self._rows:
            self._rows[record["replica"]] = _joined(record)
            self._base = msgspec.structs.replace(self._base, expected=max(self._base.expected, len(self._rows)))

    def _loss(self) -> float | None:
        """Return the mean loss of the newest steps; before there are any, that of the status."""
        return sum(self._losses.values()) / len(self._losses) if self._losses else self._base.loss


def _count(value: object) -> int:
    return int(number(value) or 0)


def _joined(record: dict[str, Any]) -> ReplicaStatus:
    known = {"replica": record["replica"], "host": str(record.get("host") or "")}
    return ReplicaStatus(**(BLANK_ROW | known))


class Records:
    """The three files of a run, merged by time."""

    def __init__(self, paths: RunPaths) -> None:
        self._paths = paths
        self.tails = {"status": Tail(paths.status), "events": Tail(paths.events), "metrics": Tail(paths.metrics)}
        files = (paths.status, paths.events, paths.metrics)
        if not any(path.is_file() for path in files):
            names = ", ".join(path.name for path in files)
            raise ConfigError([f"{paths.root} holds none of {names}: is it a run directory?"])

    def read(self) -> Iterator[tuple[float, str, dict[str, Any]]]:
        """Yield (seconds, kind, record) in order of time; a record without a time follows the one before it."""
        return heapq.merge(*(self._timed(kind) for kind in self.tails), key=lambda each: each[0])

    def _timed(self, kind: str) -> Iterator[tuple[float, str, dict[str, Any]]]:
        newest_s = float("-inf")
        for record in self.tails[kind].read():
            at_s = seconds(record)
            newest_s = newest_s if at_s is None else max(newest_s, at_s)
            if newest_s > float("-inf"):
                yield newest_s, kind, record

    def span_s(self) -> float:
        """Return the duration of the run by its records; reads all of them."""
        first_s = last_s = None
        for at_s, _, _ in Records(self._paths).read():
            first_s, last_s = at_s if first_s is None else first_s, at_s
        return last_s - first_s if first_s is not None and last_s is not None else 0.0

    def left_out(self) -> str:
        """Return what could not be read, in words; empty if nothing."""
        lost = sum(tail.unreadable + tail.torn for tail in self.tails.values())
        return f"{lost} lines of {self._paths.root} could not be read and were left out" if lost else ""


@dataclass(frozen=True)
class Frame:
    """A moment of the run: its status, and the seconds since the frame before."""

    status: FleetStatus
    gap_s: float


def moments(records: Records, run: str, frame_s: float) -> Iterator[Frame | dict[str, Any]]:
    """Yield events in order, and between them a frame for every `frame_s` of the run, and one for its end."""
    past, shown_s, now_s = Past(run), None, 0.0
    for now_s, kind, record in records.read():
        shown_s = now_s if shown_s is None else shown_s
        if now_s - shown_s >= frame_s:
            yield Frame(past.status(), now_s - shown_s)
            shown_s = now_s
        if kind == "events" and not isinstance(record.get("event"), str):
            continue
        past.take(kind, record, now_s)
        if kind == "events":
            yield record
    if shown_s is not None:
        yield Frame(past.status(), now_s - shown_s)


def replay(
    paths: RunPaths, console: Console, speed: float | None, paced: bool, sleep: Callable[[float], None]
) -> str:
    """Replay a run: `speed` times as fast as it was, or all of it in a few seconds.

    Args:
        paths: The run's directory.
        console: Where it is shown; the caller opens and closes it.
        speed: 1 is as fast as it was; None is fast.
        paced: Whether to wait between pictures at all: nobody waits for lines on a pipe.
        sleep: Waits for so many seconds.

    Returns:
        What could not be read, in words, or nothing.

    Raises:
        ConfigError: there is nothing to be shown.
    """
    records = Records(paths)
    speed = speed or max(1.0, records.span_s() / FAST_S)
    frames = 0
    for moment in moments(records, paths.root.name, speed / FRAMES_PER_S if paced else UNPACED_S):
        if not isinstance(moment, Frame):
            console.event(moment)
            continue
        if paced and frames:
            sleep(moment.gap_s / speed)
        console.show(moment.status)
        frames += 1
        if console.broken:
            break  # nobody looks any more
    if not frames:
        raise ConfigError([f"{paths.root}: nothing has been recorded yet"])
    return records.left_out()
