"""Where a run shows itself: a live picture on a terminal, plain lines anywhere else.

Whoever runs the fleet calls `show` as often as it likes the screen redrawn (4 times a second is plenty).
Nothing here ever raises into a run: when the terminal is gone, the console goes quiet and the run goes on.
"""

from __future__ import annotations

import codecs
import os
import sys
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from io import StringIO
from types import TracebackType
from typing import Any, Self, TextIO

import rich.console
from rich.live import Live
from rich.text import Text

from tsugi_kpool.core.messages import FleetStatus

from . import view
from .events import ROUND_EVENTS, plain_event
from .report import report
from .words import BAD, WARN, safe

EVERY_S = 10.0
"""Seconds between two plain lines: enough to see that it lives, few enough for a log that is kept."""
PLAIN_WIDTH = 100
SAID_KEPT = 20
"""Messages that are said again when a resized window had to be cleared."""
# The events that must still be on the screen after the live picture has gone.
LASTING_EVENTS = frozenset({"failed", "interrupted"})
# ValueError: the stream was closed, or cannot encode a character. OSError: pipe, disk or terminal is gone.
BROKEN = (OSError, ValueError)


def terminal(stream: TextIO, width: int | None = None) -> rich.console.Console:
    """A rich console on this stream that leaves a broken pipe to its caller."""
    return _Terminal(file=stream, width=width, highlight=False, markup=False, emoji=False)


class _Terminal(rich.console.Console):
    def on_broken_pipe(self) -> None:
        """Raise on, where rich would end the process: the training matters more than its picture."""
        raise


class Console(ABC):
    """What a run tells its user. A context manager; calls after `close` do nothing."""

    def __init__(self, stream: TextIO) -> None:
        self.broken = False
        self._stream = stream

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

    def message(self, text: str) -> None:
        """Show a text that stays."""
        self._quietly(self._message, safe(text, keep="\n"))

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
    def _message(self, text: str) -> None: ...

    @abstractmethod
    def _report(self, summary: Mapping[str, Any]) -> None: ...

    @abstractmethod
    def _close(self) -> None: ...

    @abstractmethod
    def _give_up(self) -> None:
        """Let go of what `open` took, on a terminal that is broken."""


class LiveConsole(Console):
    """A picture that is redrawn in place; messages scroll by above it."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self._terminal = terminal(stream)
        self._history = view.History()
        self._live: Live | None = None
        self._drawn_at = self._terminal.size
        self._said: deque[Text] = deque(maxlen=SAID_KEPT)

    def _open(self) -> None:
        # Another thread's print or warning would tear the picture, so rich lets it scroll by above. Not so
        # where stdout is a pipe: what is meant for the pipe must not land on the terminal.
        self._live = Live(
            console=self._terminal,
            auto_refresh=False,
            transient=True,
            vertical_overflow="crop",
            redirect_stdout=is_terminal(sys.stdout),
            redirect_stderr=is_terminal(sys.stderr),
        )
        self._live.start()

    def _show(self, status: FleetStatus) -> None:
        self._history.observe(status)
        if self._live is None:
            return
        size = self._terminal.size
        if size != self._drawn_at:
            self._start_over()
        self._drawn_at = size
        # One line less than there are: the cursor's line stays free, so that nothing scrolls.
        picture = view.render(status, self._history, size.width, max(1, size.height - 1))
        self._live.update(picture, refresh=True)

    def _start_over(self) -> None:
        """When the window's size has changed, lines are folded anew and nobody knows where the picture is."""
        self._close()
        self._terminal.clear()
        for text in self._said:
            self._terminal.print(text)
        self._open()

    def _event(self, record: Mapping[str, Any]) -> None:
        self._history.record(record)
        if record.get("event") in LASTING_EVENTS:
            style = BAD if record["event"] == "failed" else WARN
            self._say(Text(plain_event(record), style))

    def _message(self, text: str) -> None:
        self._say(Text(text))

    def _say(self, text: Text) -> None:
        self._said.append(text)
        self._terminal.print(text)

    def _report(self, summary: Mapping[str, Any]) -> None:
        self._close()
        self._terminal.print(report(summary), crop=False)

    def _close(self) -> None:
        live, self._live = self._live, None
        if live is not None:
            live.stop()

    def _give_up(self) -> None:
        self._close()  # gives sys.stdout and sys.stderr back even when the terminal does not answer


class PlainConsole(Console):
    """One line every `every_s` seconds of the run, and one for each event that matters. No control codes."""

    def __init__(self, stream: TextIO, every_s: float = EVERY_S) -> None:
        super().__init__(stream)
        self._every_s = every_s
        self._next_s = 0.0
        self._stage = ""
        self._unsaid: FleetStatus | None = None

    def _open(self) -> None:
        pass

    def _show(self, status: FleetStatus) -> None:
        self._unsaid = status
        if status.elapsed_s >= self._next_s or status.stage != self._stage:
            self._say(status)

    def _say(self, status: FleetStatus) -> None:
        self._next_s, self._stage, self._unsaid = status.elapsed_s + self._every_s, status.stage, None
        self._write(view.plain_line(status))

    def _event(self, record: Mapping[str, Any]) -> None:
        if record.get("event") not in ROUND_EVENTS:
            self._write(plain_event(record))

    def _message(self, text: str) -> None:
        self._write(text)

    def _report(self, summary: Mapping[str, Any]) -> None:
        self._close()
        # Via memory: colours that the environment forces upon rich do not belong in a log.
        page = StringIO()
        paper = rich.console.Console(file=page, width=PLAIN_WIDTH, color_system=None, force_terminal=False)
        paper.print(report(summary), crop=False)
        self._write("\n".join(line.rstrip() for line in page.getvalue().splitlines()))

    def _close(self) -> None:
        if self._unsaid is not None:
            self._say(self._unsaid)

    def _write(self, text: str) -> None:
        """Characters that the stream cannot encode are written as escapes."""
        encoding = getattr(self._stream, "encoding", None) or "utf-8"
        print(text.encode(encoding, "backslashreplace").decode(encoding), file=self._stream, flush=True)

    def _give_up(self) -> None:
        pass


def choose(stream: TextIO, plain: bool) -> Console:
    """The live console on a terminal that can draw it, else the plain one."""
    capable = is_terminal(stream) and os.environ.get("TERM", "dumb") not in ("dumb", "unknown")
    return LiveConsole(stream) if capable and not plain and _draws_blocks(stream) else PlainConsole(stream)


def is_terminal(stream: TextIO | None) -> bool:
    """Whether somebody looks at this stream, or it is a pipe or file (or closed)."""
    try:
        return stream is not None and stream.isatty()
    except ValueError:
        return False


def _draws_blocks(stream: TextIO) -> bool:
    """Whether the stream's encoding has the characters that bars and sparklines are made of."""
    try:
        return codecs.lookup(stream.encoding or "ascii").name in ("utf-8", "utf-16", "utf-32")
    except LookupError:
        return False
