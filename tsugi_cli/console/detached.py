"""A console that outlasts its terminal: afterwards the run's lines go to logs/console.log."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

from tsugi_kpool.core.messages import FleetStatus

from .console import Console
from .plain import PlainConsole
from .terminal import BROKEN, let_go


class LastingConsole(Console):
    """Passes everything to another console or, once nobody watches that, to lines in a file.

    Args:
        inner: Draws the picture, or prints the lines, while somebody looks.
        log: Where the lines go then.
        hung_up: Whether the terminal was taken away.
        release: Leads what this process still writes to its terminal into the file, and opens that.
    """

    def __init__(
        self,
        inner: Console,
        log: Path,
        hung_up: Callable[[], bool],
        release: Callable[[Path], TextIO] = let_go,
    ) -> None:
        super().__init__(inner.stream)
        self._inner, self._log, self._hung_up, self._release = inner, log, hung_up, release
        self._on_terminal = inner.seen  # a terminal that is gone does not say any more that it was one
        self._file: TextIO | None = None
        self._let_go = False

    @property
    def seen(self) -> bool:
        return self._inner.seen

    def _pass(self, act: Callable[[Console], None]) -> None:
        if self._hung_up() and not self._let_go:
            self._hang_up()
        act(self._inner)
        if self._inner.broken and self._file is None:
            with suppress(*BROKEN):
                sys.stderr.write(f"tsugi: nobody reads this output; {self._words()}\n")
            self._detach()
            act(self._inner)

    def _hang_up(self) -> None:
        """Detach from a terminal that was closed. Lines that go to a file or a program continue there."""
        if self._on_terminal and self._file is None:
            self._inner.message(f"hung up; {self._words()}")
            self._detach()
        elif self._file is None:
            self._release(self._log).close()
        self._let_go = True

    def _detach(self) -> None:
        self._inner.close()
        self._file, self._let_go = self._release(self._log), True
        self._inner = PlainConsole(self._file)
        self._inner.message(f"detached; {self._words()}")

    def _words(self) -> str:
        """Return what a person needs to know then."""
        root = self._log.parent.parent
        return f"the run goes on (process {os.getpid()}), and `tsugi console --run {root}` shows it; log: {self._log}"

    def _open(self) -> None:
        self._pass(lambda console: console.open())

    def _show(self, status: FleetStatus) -> None:
        self._pass(lambda console: console.show(status))

    def _event(self, record: Mapping[str, Any]) -> None:
        self._pass(lambda console: console.event(record))

    def _remember(self, past: Iterable[FleetStatus | Mapping[str, Any]]) -> None:
        self._pass(lambda console: console.remember(past))

    def _message(self, text: str) -> None:
        self._pass(lambda console: console.message(text))

    def _progress(self, text: str) -> None:
        self._pass(lambda console: console.progress(text))

    def _report(self, summary: Mapping[str, Any]) -> None:
        self._pass(lambda console: console.report(summary))

    def _close(self) -> None:
        self._pass(lambda console: console.close())
        if self._file is not None:
            self._file.close()

    def _give_up(self) -> None:
        """Do nothing: the inner console is never broken for its caller."""
