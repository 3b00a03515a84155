"""Sinks of a run's events and statuses: files, the console, Prometheus, trackers. One place hands them out.

A sink that fails harms neither the run nor the other sinks: it gets no more, and the event `sink_failed` reports it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

from tsugi_kpool.core.events import SinkFailed
from tsugi_kpool.core.messages import FleetStatus


class SinkError(Exception):
    """A sink has failed; the text says why, in one line."""


class Sink(Protocol):
    """A receiver of a run's events and statuses. Called by one thread; must not wait for long.

    Every call may raise a SinkError or an OSError; then the sink gets no more.
    """

    name: str
    """Name in the event that reports its failure."""

    def event(self, event: Mapping[str, Any]) -> None:
        """Take a record of events.jsonl, with its time."""

    def status(self, status: FleetStatus) -> None:
        """Take the fleet's status; a few times a second."""

    def close(self) -> None:
        """Finish: the run has ended."""


class Sinks:
    """The sinks of a run, in the order in which they are called.

    Args:
        sinks: Those to tell.
        tell: Gets an event for each sink that has failed; must not raise.
    """

    def __init__(self, sinks: Iterable[Sink], tell: Callable[[SinkFailed], None]) -> None:
        self._sinks, self._tell = list(sinks), tell

    def add(self, sink: Sink) -> None:
        """Add a sink."""
        self._sinks.append(sink)

    def event(self, event: Mapping[str, Any]) -> None:
        """Pass an event to all sinks."""
        self._each(lambda sink: sink.event(event))

    def status(self, status: FleetStatus) -> None:
        """Pass a status to all sinks."""
        self._each(lambda sink: sink.status(status))

    def close(self) -> None:
        """Close all sinks, the last one first: the files still get what a tracker reports at its end."""
        self._sinks.reverse()
        self._each(lambda sink: sink.close())

    def _each(self, act: Callable[[Sink], None]) -> None:
        for sink in list(self._sinks):
            try:
                act(sink)
            except (SinkError, OSError) as error:
                self._sinks.remove(sink)
                self._tell(SinkFailed(sink.name, str(error)))
