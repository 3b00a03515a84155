"""How far a benchmark is: a bar on a terminal, a line for each finished run elsewhere; with an ETA that learns."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from statistics import fmean
from types import TracebackType
from typing import Self, TextIO

from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

from tsugi_cli.terminal import is_terminal, terminal
from tsugi_cli.words import clock

from .plan import STARTING_S, Run


class Eta:
    """How long what is left will take: the training that is predicted, and what else runs have taken so far.

    Args:
        predicted_s: Seconds of training of a run, as far as they are known beforehand.
    """

    def __init__(self, predicted_s: Callable[[Run], float]) -> None:
        self._predicted_s = predicted_s
        self._more_s: dict[str, list[float]] = {}

    def done(self, run: Run, seconds: float) -> None:
        """A run has taken so long, from the one before."""
        self._more_s.setdefault(self._kind(run), []).append(seconds - self._predicted_s(run))

    def left_s(self, runs: Sequence[Run], running_s: float) -> float:
        """Seconds until all of these are finished, the first of which has been running for a while."""
        each = [max(1.0, self._predicted_s(run) + self._usual_s(self._kind(run))) for run in runs]
        return max(0.0, sum(each) - min(running_s, each[0] if each else 0.0))

    def _usual_s(self, kind: str) -> float:
        found = self._more_s.get(kind)
        return fmean(found) if found else STARTING_S[kind]

    @staticmethod
    def _kind(run: Run) -> str:
        return "peers" if run.arm.synchronous else run.arm.method


class Display:
    """Tells a user how far a benchmark is. A context manager."""

    def __init__(self, stream: TextIO, plain: bool, eta: Eta, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._stream, self._eta, self._clock_s = stream, eta, clock_s
        self._bar: Progress | None = None
        if is_terminal(stream) and not plain:
            columns = (
                SpinnerColumn(),
                TextColumn("{task.description}"),
                BarColumn(24),
                TextColumn("{task.fields[said]}"),
            )
            self._bar = Progress(*columns, console=terminal(stream), transient=True)
            self._task = self._bar.add_task("", total=None, said="")
        self._total, self._left, self._began_s = 0, list[Run](), 0.0

    def message(self, text: str) -> None:
        """A line that stays."""
        if self._bar is not None:
            self._bar.console.print(text, soft_wrap=True)
        else:
            self._stream.write(text + "\n")
            self._stream.flush()

    def expect(self, total: int, left: Sequence[Run]) -> None:
        """So many runs in all, and what is left of them, in their order."""
        self._total, self._left = total, list(left)
        self._began_s = self._clock_s()
        self.turn()

    def begin(self) -> None:
        """The next run begins."""
        self._began_s = self._clock_s()

    def done(self, run: Run) -> None:
        """This run is finished."""
        now_s = self._clock_s()
        self._eta.done(run, now_s - self._began_s)
        took_s, self._began_s = now_s - self._began_s, now_s
        self._left = [each for each in self._left if each.key != run.key]
        if self._bar is None:
            self.message(f"{self._said()}  {run.key} took {took_s:.0f} s")
        self.turn()

    def turn(self) -> None:
        """Redraw."""
        if self._bar is not None:
            now = self._left[0].key if self._left else "evaluating"
            finished = self._total - len(self._left)
            self._bar.update(self._task, total=self._total, completed=finished, description=now, said=self._said())

    def _said(self) -> str:
        made = f"{self._total - len(self._left)}/{self._total} runs"
        if not self._left:
            return made
        return f"{made}, about {clock(self._eta.left_s(self._left, self._clock_s() - self._began_s))} left"

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
