"""The progress of a benchmark: a bar on a terminal, elsewhere a line for each finished run, with an ETA.

Nothing here ever raises into a benchmark: when the terminal has gone, its lines go to a file.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from statistics import fmean
from types import TracebackType
from typing import Self, TextIO

from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

from tsugi_cli.console.format import clock
from tsugi_cli.console.terminal import BROKEN, is_terminal, let_go, terminal

from .plan import STARTING_S, Run


class Eta:
    """Estimates the time left: predicted training, and what else runs have taken so far.

    Args:
        predicted_s: Seconds of training of a run, as far as they are known beforehand.
    """

    def __init__(self, predicted_s: Callable[[Run], float]) -> None:
        self._predicted_s = predicted_s
        self._more_s: dict[str, list[float]] = {}

    def done(self, run: Run, seconds: float) -> None:
        """Take in the duration of a run."""
        self._more_s.setdefault(self._kind(run), []).append(seconds - self._predicted_s(run))

    def left_s(self, runs: Sequence[Run], running_s: float) -> float:
        """Return the seconds until all of these runs are finished; the first has been running for a while."""
        each = [max(1.0, self._predicted_s(run) + self._usual_s(self._kind(run))) for run in runs]
        return max(0.0, sum(each) - min(running_s, each[0] if each else 0.0))

    def _usual_s(self, kind: str) -> float:
        found = self._more_s.get(kind)
        return fmean(found) if found else STARTING_S[kind]

    @staticmethod
    def _kind(run: Run) -> str:
        return "peers" if run.arm.synchronous else run.arm.method


class Display:
    """Shows a user the progress of a benchmark. A context manager.

    Args:
        stream: Where, as long as somebody looks.
        plain: Lines even on a terminal.
        eta: What is left.
        log: Where lines go on when nobody looks any more.
        hung_up: Whether the terminal was taken away.
        release: Leads what this process still writes to its terminal into the log, and opens that.
        clock_s: Seconds.
    """

    def __init__(
        self,
        stream: TextIO,
        plain: bool,
        eta: Eta,
        log: Path,
        hung_up: Callable[[], bool] = lambda: False,
        release: Callable[[Path], TextIO] = let_go,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stream, self._eta, self._clock_s = stream, eta, clock_s
        self._log, self._hung_up, self._release = log, hung_up, release
        self._detached, self._on_terminal = False, is_terminal(stream)
        self._bar: Progress | None = None
        if self._on_terminal and not plain:
            columns = (
                SpinnerColumn(),
                TextColumn("{task.description}"),
                BarColumn(24),
                TextColumn("{task.fields[said]}"),
            )
            # Redrawn by `turn`: a thread that does it by itself would die with the terminal, and say so.
            self._bar = Progress(*columns, console=terminal(stream), transient=True, auto_refresh=False)
            self._task = self._bar.add_task("", total=None, said="")
        self._total, self._left, self._began_s = 0, list[Run](), 0.0

    def message(self, text: str) -> None:
        """Show a line that stays."""
        self._quietly(lambda: self._message(text))

    def _message(self, text: str) -> None:
        if self._bar is not None:
            self._bar.console.print(text, soft_wrap=True)
        else:
            self._stream.write(text + "\n")
            self._stream.flush()

    def expect(self, total: int, left: Sequence[Run]) -> None:
        """Set the number of runs, and those that are left, in order."""
        self._total, self._left = total, list(left)
        self._began_s = self._clock_s()
        self.turn()

    def begin(self) -> None:
        """Begin the next run."""
        self._began_s = self._clock_s()

    def done(self, run: Run) -> None:
        """Finish this run."""
        now_s = self._clock_s()
        self._eta.done(run, now_s - self._began_s)
        took_s, self._began_s = now_s - self._began_s, now_s
        self._left = [each for each in self._left if each.key != run.key]
        if self._bar is None:
            self.message(f"{self._said()}  {run.key} took {took_s:.0f} s")
        self.turn()

    def turn(self) -> None:
        """Redraw."""
        self._quietly(self._turn)

    def _turn(self) -> None:
        if self._bar is not None:
            now = self._left[0].key if self._left else "evaluating"
            finished = self._total - len(self._left)
            self._bar.update(self._task, total=self._total, completed=finished, description=now, said=self._said())
            self._bar.refresh()

    def _quietly(self, act: Callable[[], None]) -> None:
        """Call a method; where nobody watches any more, its lines go to the file."""
        if self._hung_up() and not self._detached:
            self._detach(self._on_terminal)
        try:
            act()
        except BROKEN:
            if not self._detached:
                self._detach(True)
                self._quietly(act)

    def _detach(self, to_log: bool) -> None:
        """Detach from the terminal; lines that somebody keeps or reads stay where they are."""
        self._detached = True
        with suppress(*BROKEN):
            self._stop()
        self._bar, log = None, self._release(self._log)
        if to_log:
            self._stream = log
        self._quietly(lambda: self._message(f"detached; the benchmark goes on (process {os.getpid()})"))

    def _start(self) -> None:
        if self._bar is not None:
            self._bar.start()

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()

    def _said(self) -> str:
        made = f"{self._total - len(self._left)}/{self._total} runs"
        if not self._left:
            return made
        return f"{made}, about {clock(self._eta.left_s(self._left, self._clock_s() - self._began_s))} left"

    def __enter__(self) -> Self:
        self._quietly(self._start)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._quietly(self._stop)
