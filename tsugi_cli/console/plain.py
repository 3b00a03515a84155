"""The plain console: lines of ASCII for pipes and logs, and a run's end in words."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from io import StringIO
from typing import Any, TextIO

import rich.console

from tsugi_cli.record.records import number
from tsugi_cli.record.status_log import ENDS
from tsugi_kpool.core.diagnosis import Part
from tsugi_kpool.core.hub.health import Health
from tsugi_kpool.core.messages import FleetStatus, ReplicaStatus

from .console import Console
from .events import ROUND_EVENTS, plain_event
from .format import clock, count, duration, percent, safe
from .panels import doing, waiting
from .report import report

EVERY_S = 10.0
"""Seconds between two plain lines: enough to see that it lives, few enough for a log."""
PLAIN_WIDTH = 100


def plain_line(status: FleetStatus) -> str:
    """Return the fleet as one line of ASCII, for pipes and logs, without unknown values."""
    if words := waiting(status) or doing(status):
        return f"  {words}"
    slowest = max(status.replicas, key=lambda row: number(row.lag_s) or 0.0, default=None)
    parts = [
        _samples(status),
        safe(status.stage) if status.stage != "training" else "",
        f"loss {status.loss:.3f}" if number(status.loss) is not None else "",
        f"{count(status.tokens_per_s)} tok/s" if number(status.tokens_per_s) else "",
        f"goodput {percent(status.goodput)}" if number(status.goodput) is not None else "",
        f"tax recovered {percent(status.tax_recovered)}" if number(status.tax_recovered) is not None else "",
        f"round {status.version}" if status.version else "",
        f"lag {duration(slowest.lag_s)}(r{slowest.replica})" if slowest and number(slowest.lag_s) else "",
        _slow(status.replicas),
        f"eta {clock(status.eta_s)}" if number(status.eta_s) is not None else "",
    ]
    return "  ".join(filter(None, parts))


def _samples(status: FleetStatus) -> str:
    done, total = str(status.samples_done), status.samples_total
    if total <= 0:
        return f"  {done} samples"
    return f"{done:>{len(str(total)) + 2}}/{total} samples {status.samples_done / total:>4.0%}"


def _slow(replicas: tuple[ReplicaStatus, ...]) -> str:
    """Return the slowest of the slow replicas, and how many there are."""
    told = [(row.slowness, row.replica) for row in replicas if row.slowness]
    slow = sorted(((each.factor, replica) for each, replica in told if each.part != Part.ROUND), reverse=True)
    links = [f"slow link(r{replica})" for each, replica in told if each.part == Part.ROUND]
    more = f" and {len(slow) - 1} more" if len(slow) > 1 else ""
    return "  ".join([*([f"slow {slow[0][0]:.1f}x(r{slow[0][1]}){more}"] if slow else []), *links[:1]])


def health_line(status: FleetStatus) -> str:
    """Return the fleet's health as one line."""
    reasons = "; ".join(safe(reason) for reason in status.health_reasons)
    return f"  health: {safe(status.health)}{f', {reasons}' if reasons else ''}"


class PlainConsole(Console):
    """Prints one line every `every_s` seconds of the run, and one for each important event. No control codes."""

    def __init__(self, stream: TextIO, every_s: float = EVERY_S) -> None:
        super().__init__(stream)
        self._every_s = every_s
        self._next_s = 0.0
        self._progress_s = time.monotonic() + every_s  # what is done sooner needs no line
        self._stage = ""
        self._health: str = Health.HEALTHY
        self._said = ""
        """The newest line of the fleet's status."""
        self._unsaid: FleetStatus | None = None

    def _open(self) -> None:
        pass

    def _show(self, status: FleetStatus) -> None:
        self._unsaid = status
        if status.health != self._health:
            self._health = status.health
            self._write(health_line(status))
        if status.elapsed_s >= self._next_s or status.stage != self._stage:
            self._say(status)

    def _say(self, status: FleetStatus) -> None:
        self._next_s, self._stage, self._unsaid = status.elapsed_s + self._every_s, status.stage, None
        before, self._said = self._said, plain_line(status)
        if not (status.stage in ENDS and self._said == before):  # while a run lasts, a line says that it lives
            self._write(self._said)

    def _event(self, record: Mapping[str, Any]) -> None:
        if record.get("event") not in ROUND_EVENTS:
            self._write(plain_event(record))

    def _remember(self, past: Iterable[FleetStatus | Mapping[str, Any]]) -> None:
        pass

    def _message(self, text: str) -> None:
        self._write(text)

    def _progress(self, text: str) -> None:
        now_s = time.monotonic()
        if text and now_s >= self._progress_s:
            self._progress_s = now_s + self._every_s
            self._write(f"  {text}")

    def _report(self, summary: Mapping[str, Any]) -> None:
        self._close()
        # Via memory: colours that the environment forces upon rich do not belong in a log.
        page = StringIO()
        paper = rich.console.Console(file=page, width=PLAIN_WIDTH, color_system=None, force_terminal=False)
        paper.print(report(summary), crop=False)
        self._write("\n".join(line.rstrip() for line in page.getvalue().splitlines()))

    def _close(self) -> None:
        if self._unsaid is not None and plain_line(self._unsaid) != self._said:
            self._say(self._unsaid)

    def _write(self, text: str) -> None:
        """Write a line; characters that the stream cannot encode become escapes."""
        encoding = getattr(self._stream, "encoding", None) or "utf-8"
        print(text.encode(encoding, "backslashreplace").decode(encoding), file=self._stream, flush=True)

    def _give_up(self) -> None:
        pass
