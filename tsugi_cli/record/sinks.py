"""Where a run's events and statuses go: files, the console, Prometheus, trackers. One place hands them out.

A sink that fails costs the run nothing and the other sinks nothing: it is told nothing more, and the event
`sink_failed` says so once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

from tsugi_kpool.core.events import SinkFailed
from tsugi_kpool.core.messages import FleetStatus


class SinkError(Exception):
    """A sink cannot go on; the text says why, in one line."""


class Sink(Protocol):
    """Whoever is told of a run. Called by one thread, and never waits for long.

    Every call may raise a SinkError or an OSError: the sink is told nothing more then.
    """

    name: str
    """For the event that says that it has failed."""

    def event(self, event: Mapping[str, Any]) -> None:
        """Something has happened: a record of events.jsonl, with its time."""

    def status(self, status: FleetStatus) -> None:
        """How the fleet is now; a few times a second."""

    def close(self) -> None:
        """The run has ended."""


class Sinks:
    """All sinks of a run, in the order in which they are told.

    Args:
        sinks: Those to tell.
        tell: Gets an event for each sink that has failed; must not raise.
    """

    def __init__(self, sinks: Iterable[Sink], tell: Callable[[SinkFailed], None]) -> None:
        self._sinks, self._tell = list(sinks), tell

    def add(self, sink: Sink) -> None:
        """Tell this one too, from now on."""
        self._sinks.append(sink)

    def event(self, event: Mapping[str, Any]) -> None:
        """Tell all of an event."""
        self._each(lambda sink: sink.event(event))

    def status(self, status: FleetStatus) -> None:
        """Tell all how the fleet is."""
        self._each(lambda sink: sink.status(status))

    def close(self) -> None:
        """Tell all that the run has ended, the last one first: what it has to say of that, the files still get."""
        self._sinks.reverse()
        self._each(lambda sink: sink.close())

    def _each(self, act: Callable[[Sink], None]) -> None:
        for sink in list(self._sinks):
            try:
                act(sink)
            except (SinkError, OSError) as error:
                self._sinks.remove(sink)
                self._tell(SinkFailed(sink.name, str(error)))
