"""Where a run shows itself: the console's interface. `live.py` draws a picture, `plain.py` prints lines.

Whoever runs the fleet calls `show` as often as it likes the screen redrawn (4 times a second is plenty).
Nothing here ever raises into a run: when the terminal is gone, the console goes quiet and the run goes on.
A run's own console is made to last (`detached.py`): it then writes lines into a file.
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
    """What a run tells its user. A context manager; calls after `close` do nothing."""

    def __init__(self, stream: TextIO) -> None:
        self.broken = False
        self._stream = stream

    @property
    def stream(self) -> TextIO:
        """What it writes to."""
        return self._stream

    @property
    def seen(self) -> bool:
        """Whether what is said goes to a person's terminal, and not into a file or another program."""
        return is_terminal(self._stream)

    def open(self) -> None:
        """Begin."""
        self._quietly(self._open)

    def show(self, status: FleetStatus) -> None:
        """Show how the fleet is."""
        self._quietly(self._show, status)

    def event(self, record: Mapping[str, Any]) -> None:
        """Show a record of events.jsonl, or remember it for the next picture."""
        self._quietly(self._event, record)

    def remember(self, past: Iterable[FleetStatus | Mapping[str, Any]]) -> None:
        """Take in statuses and events of before, for the pictures to come; nothing of it is shown by itself."""
        self._quietly(self._remember, past)

    def message(self, text: str) -> None:
        """Show a text that stays."""
        self._quietly(self._message, safe(text, keep="\n"))

    def progress(self, text: str) -> None:
        """Show how far something is that goes on; the next text takes this one's place, an empty one leaves none."""
        self._quietly(self._progress, safe(text))

    def report(self, summary: Mapping[str, Any]) -> None:
        """Show the end screen in the place of the live picture."""
        self._quietly(self._report, summary)

    def close(self) -> None:
        """End; the terminal is as it was."""
        self._quietly(self._close)

    def _quietly(self, act: Callable[..., None], *arguments: object) -> None:
        """Do it, unless the terminal is broken; notice when it breaks."""
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
        """Let go of what `open` took, on a terminal that is broken."""
