"""The live console: a picture that is redrawn in place, on a terminal that can."""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Iterable, Mapping
from contextlib import ExitStack, suppress
from typing import Any, TextIO

from rich.live import Live
from rich.text import Text

from tsugi_cli.signals import around_stop
from tsugi_kpool.core.events import Name
from tsugi_kpool.core.messages import FleetStatus

from . import view
from .console import Console
from .events import plain_event
from .format import BAD, WARN
from .history import History
from .report import report
from .terminal import BROKEN, Quiet, is_terminal, terminal

SAID_KEPT = 20
"""Messages that are repeated when a resized window had to be cleared."""
# The events that must still be on the screen after the live picture has gone.
LASTING_EVENTS = frozenset({Name.FAILED, Name.INTERRUPTED, Name.DESERTED, Name.SINK_FAILED})
# A terminal that knows these draws what stands between them at once; others ignore them.
SHOW_CURSOR = b"\x1b[?25h"
HOLD, RELEASE = "\x1b[?2026h", "\x1b[?2026l"


class LiveConsole(Console):
    """A picture that is redrawn in place; messages scroll by above it.

    The report replaces the picture. Without a report, as when the run has failed, the last picture stays.
    """

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self._terminal = terminal(stream)
        self._history = History()
        self._live: Live | None = None
        self._quiet = Quiet(stream)
        self._drawn_at = self._terminal.size
        self._said: deque[Text] = deque(maxlen=SAID_KEPT)
        self._stopped, self._watching = False, ExitStack()

    def _open(self) -> None:
        self._watching.enter_context(around_stop(self._lend, self._take_back))
        self._start()

    def _lend(self) -> None:
        """Give the shell its cursor, without the stream: we may have been stopped in the middle of writing to
        that."""
        self._quiet.end()
        with suppress(*BROKEN):
            os.write(self._stream.fileno(), SHOW_CURSOR)

    def _take_back(self) -> None:
        self._stopped = True

    def _start(self) -> None:
        self._quiet.begin()
        # Another thread's print or warning would tear the picture, so rich lets it scroll by above. Not so
        # where stdout is a pipe: what is meant for the pipe must not land on the terminal.
        self._live = Live(
            console=self._terminal,
            auto_refresh=False,
            transient=False,
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
        if size != self._drawn_at or self._stopped:
            self._stopped = False
            self._start_over()
        self._drawn_at = size
        # One line less than there are: the cursor's line stays free, so that nothing scrolls.
        picture = view.render(status, self._history, size.width, max(1, size.height - 1))
        self._stream.write(HOLD)
        self._live.update(picture, refresh=True)
        self._stream.write(RELEASE)
        self._stream.flush()

    def _start_over(self) -> None:
        """Clear and draw anew: after a resize, or after the shell has written, the picture's place is unknown."""
        self._wipe()
        self._terminal.clear()
        for text in self._said:
            self._terminal.print(text)
        self._start()

    def _event(self, record: Mapping[str, Any]) -> None:
        self._history.record(record)
        if record.get("event") in LASTING_EVENTS:
            style = BAD if record["event"] == Name.FAILED else WARN
            self._say(Text(plain_event(record), style))

    def _remember(self, past: Iterable[FleetStatus | Mapping[str, Any]]) -> None:
        for moment in past:
            if isinstance(moment, FleetStatus):
                self._history.observe(moment)
            else:
                self._history.record(moment)

    def _message(self, text: str) -> None:
        self._say(Text(text))

    def _say(self, text: Text) -> None:
        self._said.append(text)
        self._terminal.print(text)

    def _progress(self, text: str) -> None:
        if self._live is not None:
            self._live.update(Text(text), refresh=True)

    def _report(self, summary: Mapping[str, Any]) -> None:
        self._wipe()
        self._terminal.print(report(summary), crop=False)

    def _wipe(self) -> None:
        """Remove the picture."""
        if self._live is not None:
            self._live.transient = True
        self._end()

    def _close(self) -> None:
        self._watching.close()
        self._end()

    def _end(self) -> None:
        live, self._live = self._live, None
        self._quiet.end()
        if live is not None:
            live.stop()

    def _give_up(self) -> None:
        self._close()  # gives sys.stdout and sys.stderr back even when the terminal does not answer
