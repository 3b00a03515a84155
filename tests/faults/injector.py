"""Faults from outside: the run's processes get their traps, and what a process cannot do to itself is done here."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from .points import FOLDER, READY, Fault, Fired, Kind, fired_in, write_plan

HOOKS = Path(__file__).parent / "hooks"
ROOT = Path(__file__).resolve().parents[2]
LOOK_S = 0.005

Act = Callable[[Fault], Callable[[], None]]
"""Begins a fault, and returns what ends it."""


class NotFired(AssertionError):
    """A fault that was to happen did not: whatever the test has seen, it was something else."""


class Injector:
    """Carries out the faults of one run, and says which of them have happened. `start`, `stop`, `check`.

    Args:
        folder: Empty; plan, flags and traces go there.
        faults: In any order; each happens once.
        acts: How those kinds are done that no process can do to itself.
        ready: Whether the run has come to where those faults can happen that wait for it; asked until it has.
    """

    def __init__(
        self,
        folder: Path,
        faults: tuple[Fault, ...],
        acts: Mapping[Kind, Act] | None = None,
        ready: Callable[[], bool] = lambda: True,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.faults, self._acts = folder, faults, dict(acts or {})
        write_plan(folder, faults)
        self._ready = ready
        self._begun: set[int] = set()
        self._ends: list[tuple[float, Callable[[], None]]] = []
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def env(self) -> dict[str, str]:
        """For the run's processes."""
        path = [str(HOOKS), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        return {**os.environ, FOLDER: str(self.folder), "PYTHONPATH": os.pathsep.join(path)}

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End the thread, and whatever still lasts."""
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join(10)
        for _, end in self._ends:
            end()
        self._ends.clear()

    @property
    def fired(self) -> dict[int, Fired]:
        return fired_in(self.folder)

    def check(self) -> None:
        """Every fault has happened.

        Raises:
            NotFired: names those that have not.
        """
        fired = self.fired
        missing = [str(fault) for number, fault in enumerate(self.faults) if number not in fired]
        if missing:
            raise NotFired(f"did not fire: {'; '.join(missing)}")

    def _run(self) -> None:
        while not self._stopping.wait(LOOK_S):
            if not (self.folder / READY).exists() and self._ready():
                (self.folder / READY).touch()
            for number, fired in self.fired.items():
                if number not in self._begun:
                    self._begun.add(number)
                    self._begin(number, fired)
            now_s = time.monotonic()
            due = [each for each in self._ends if each[0] <= now_s]
            self._ends = [each for each in self._ends if each[0] > now_s]
            for _, end in due:
                end()

    def _begin(self, number: int, fired: Fired) -> None:
        fault = fired.fault
        if fault.kind is Kind.STOP and fault.for_s:
            self._ends.append((fired.at_s + fault.for_s, lambda: _wake(fired.pid)))
        if (act := self._acts.get(fault.kind)) is not None:
            end = act(fault)
            if fault.for_s:
                self._ends.append((time.monotonic() + fault.for_s, end))
            (self.folder / f"{number}.done").touch()


def _wake(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGCONT)
    except ProcessLookupError:
        return
