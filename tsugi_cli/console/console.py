"""The console's interface: what a run shows its user. `live.py` draws a picture, `plain.py` prints lines.

Whoever runs the fleet calls `show` as often as the screen is to be redrawn (4 times a second is plenty). Nothing here
ever raises into a run: when the terminal has gone, the console is silent and the run goes on. A run's own console
outlasts its terminal (`detached.py`): it then writes lines into a file.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from types import TracebackType
from typing import Any, Self, TextIO

from tsugi_kpool.core.messages import FleetStatus

from .format import safe
from .terminal import BROKEN, is_terminal


class Console(ABC):
    """What a run shows its user. A context manager; calls after `close` do nothing."""

    def __init__(self, stream: TextIO) -> None:
        self.broken = False
        self._stream = stream

    @property
    def stream(self) -> TextIO:
        """The stream that it writes to."""
        return self._stream

    @property
    def seen(self) -> bool:
        """Whether its output goes to a person's terminal, not to a file or another program."""
        return is_terminal(self._stream)

    def open(self) -> None:
        """Begin."""
        self._quietly(self._open)

    def show(self, status: FleetStatus) -> None:
        """Show the fleet's status."""
        self._quietly(self._show, status)

    def event(self, record: Mapping[str, Any]) -> None:
        """Show a record of events.jsonl, or remember it for the next picture."""
        self._quietly(self._event, record)

    def remember(self, past: Iterable[FleetStatus | Mapping[str, Any]]) -> None:
        """Take in earlier statuses and events for the pictures to come, without showing them."""
        self._quietly(self._remember, past)

    def message(self, text: str) -> None:
        """Show a text that stays."""
        self._quietly(self._message, safe(text, keep="\n"))

    def progress(self, text: str) -> None:
        """Show the progress of something; the next text replaces this one, and an empty one removes it."""
        self._quietly(self._progress, safe(text))

    def report(self, summary: Mapping[str, Any]) -> None:
        """Show the end screen in the place of the live picture."""
        self._quietly(self._report, summary)

    def close(self) -> None:
        """End, and leave the terminal as it was."""
        self._quietly(self._close)

    def _quietly(self, act: Callable[..., None], *arguments: object) -> None:
        """Call a method unless the terminal is broken; notice when it breaks."""
        if self.broken:
            return
        try:
            act(*arguments)
        except BROKEN:
            self.broken = True
            with suppress(*BROKEN):
                self._give_up()

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @abstractmethod
    def _open(self) -> None: ...

    @abstractmethod
    def _show(self, status: FleetStatus) -> None: ...

    @abstractmethod
    def _event(self, record: Mapping[str, Any]) -> None: ...

    @abstractmethod
    def _remember(self, past: Iterable[FleetStatus | Mapping[str, Any]]) -> None: ...

    @abstractmethod
    def _message(self, text: str) -> None: ...

    @abstractmethod
    def _progress(self, text: str) -> None: ...

    @abstractmethod
    def _report(self, summary: Mapping[str, Any]) -> None: ...

    @abstractmethod
    def _close(self) -> None: ...

    @abstractmethod
    def _give_up(self) -> None:
        """Release what `open` took, on a broken terminal."""


class ConsoleSink:
    """A run's console as a sink. Whoever opened it closes it, because the report comes after the run.

    Args:
        console: It never raises.
    """

    name = "the console"

    def __init__(self, console: Console) -> None:
        self._console = console

    def event(self, event: Mapping[str, Any]) -> None:
        """Show an event, or remember it for the next picture."""
        self._console.event(event)

    def status(self, status: FleetStatus) -> None:
        """Draw a status."""
        self._console.show(status)

    def close(self) -> None:
        """Do nothing: the console stays for the report."""
