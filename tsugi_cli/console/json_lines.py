"""A run for programs (`--json`): events, statuses, messages and the summary as JSON lines."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from tsugi_cli.record.answer import Answer, line
from tsugi_cli.record.status_log import StatusPacing, compact
from tsugi_kpool.core.messages import FleetStatus

from .console import Console
from .terminal import BROKEN


class JsonConsole(Console):
    """Passes everything to another console, and writes it as JSON lines.

    `broken` says whether a program still reads. The run and the other console go on without it.

    Args:
        inner: What people see. It never raises.
        answer: Takes the lines.
    """

    def __init__(self, inner: Console, answer: Answer) -> None:
        super().__init__(inner.stream)
        self._inner, self._answer = inner, answer
        self._pacing = StatusPacing()

    @property
    def seen(self) -> bool:
        return self._inner.seen

    def _quietly(self, act: Callable[..., None], *arguments: object) -> None:
        act(*arguments)

    def _line(self, fields: object) -> None:
        if self.broken:
            return
        try:
            self._answer.put(fields)
        except BROKEN:
            self.broken = True

    def _open(self) -> None:
        self._inner.open()

    def _show(self, status: FleetStatus) -> None:
        self._inner.show(status)
        if self._pacing.due(status):
            record = {"status": compact(status)}
            self._pacing.written(status, len(line(record)))
            self._line(record)

    def _event(self, record: Mapping[str, Any]) -> None:
        self._inner.event(record)
        self._line(record)

    def _remember(self, past: Iterable[FleetStatus | Mapping[str, Any]]) -> None:
        """Also what had happened before somebody looked is told: a program wants all events."""
        known = list(past)
        self._inner.remember(known)
        for each in known:
            if isinstance(each, Mapping):
                self._line(each)

    def _message(self, text: str) -> None:
        self._inner.message(text)
        self._line({"message": text})

    def _progress(self, text: str) -> None:
        self._inner.progress(text)

    def _report(self, summary: Mapping[str, Any]) -> None:
        self._inner.report(summary)
        self._line({"summary": summary})

    def _close(self) -> None:
        self._inner.close()

    def _give_up(self) -> None:
        """Do nothing: the inner console looks after itself."""
