"""In the process that a fault happens to: traps at the protocol's states, and a trace of what it did.

Nothing of the product knows of this: `hooks/sitecustomize.py` wraps its methods when a process of a run begins.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .points import FOLDER, HUB, INSIDE, READY, Fault, Kind, State, read_plan

MID_S = 0.001
"""How long a collective has run when it is `gathering`."""
OUTSIDE_S = 30.0
"""Who is to do something from outside has done it by then."""
HOUR_S = 3600


class Trap:
    """The faults of one process."""

    def __init__(self, folder: Path, replica: int) -> None:
        self._folder, self.replica = folder, replica
        self._faults = [(n, each) for n, each in enumerate(read_plan(folder)) if each.replica == replica]
        self._trace = (folder / f"trace-{replica}-{os.getpid()}.jsonl").open("a", buffering=1)
        self.step = self.round = self.life = 0
        """`life`: a process may take part as several incarnations, one after another."""

    def tell(self, state: State, **facts: Any) -> None:
        """Write down that this state was reached."""
        line = {"at_s": time.monotonic(), "state": state, "replica": self.replica, "pid": os.getpid()}
        line |= {"life": self.life, **facts}
        self._trace.write(json.dumps(line) + "\n")

    def reach(self, state: State, step: int | None = None) -> None:
        """This state is reached: whatever is due here happens now."""
        for number, fault in self._faults:
            due = fault.state is state and (self.step if step is None else step) >= fault.step
            if due and self._ready(fault) and self._first(number):
                self._strike(number, fault)

    def reach_soon(self, state: State) -> None:
        """The same from another thread, a moment later."""
        if any(fault.state is state for _, fault in self._faults):
            threading.Timer(MID_S, self.reach, (state,)).start()

    def _ready(self, fault: Fault) -> bool:
        return not fault.when_ready or (self._folder / READY).exists()

    def _first(self, number: int) -> bool:
        """A fault happens once, whoever takes this one's place."""
        try:
            flag = os.open(self._folder / f"{number}.fired", os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        except FileExistsError:
            return False
        os.write(flag, json.dumps([os.getpid(), time.monotonic(), time.time()]).encode())
        os.close(flag)
        return True

    def _strike(self, number: int, fault: Fault) -> None:
        if fault.kind is Kind.KILL:
            os.kill(os.getpid(), signal.SIGKILL)
        elif fault.kind is Kind.STOP:
            os.kill(os.getpid(), signal.SIGSTOP)
        elif fault.kind is Kind.AGENT:
            os.kill(os.getppid(), signal.SIGKILL)
        elif fault.kind is Kind.HOLD:
            ctypes.PyDLL(None).usleep(int(fault.for_s * 1e6))
        elif fault.kind in (Kind.CLOCK_BACK, Kind.CLOCK_AHEAD):
            set_clock(-HOUR_S if fault.kind is Kind.CLOCK_BACK else HOUR_S)
        elif fault.kind not in INSIDE:
            self._await(self._folder / f"{number}.done")

    def _await(self, sign: Path) -> None:
        until_s = time.monotonic() + OUTSIDE_S
        while not sign.exists() and time.monotonic() < until_s:
            time.sleep(0.002)


def set_clock(seconds: int) -> None:
    """Move this process's wall clock, as Python reads it, by so much."""
    import datetime

    real, real_ns, usual = time.time, time.time_ns, datetime.datetime

    class Moved(usual):  # type: ignore[misc,valid-type]
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return super().now(tz) + datetime.timedelta(seconds=seconds)

    time.time = lambda: real() + seconds
    time.time_ns = lambda: real_ns() + seconds * 10**9
    datetime.datetime = Moved  # type: ignore[misc]


def lay(argv: list[str]) -> None:
    """Wrap what this process is about to run."""
    folder = os.environ.get(FOLDER)
    if folder is None:
        return
    if "tsugi_cli.finetune.worker" in argv:
        _in_a_replica(Trap(Path(folder), int(argv[argv.index("--replica") + 1])))
    elif "join" not in argv:
        _in_the_hub(Trap(Path(folder), HUB))


def _wrap(owner: Any, name: str, around: Callable[..., Any]) -> None:
    original = getattr(owner, name)

    def wrapped(self: Any, *args: Any, **kwargs: Any) -> Any:
        return around(lambda: original(self, *args, **kwargs), self, *args)

    setattr(owner, name, wrapped)


def _in_a_replica(trap: Trap) -> None:
    _trap_steps(trap)
    _trap_rounds(trap)
    _trap_commits(trap)
    _trap_shipping(trap)
    _trap_reports(trap)


def _trap_steps(trap: Trap) -> None:
    from tsugi_kpool.engine.engine import KPoolEngine

    def start(go: Callable[[], Any], *_: Any) -> Any:
        trap.life, trap.step = trap.life + 1, 0
        return go()

    def report(go: Callable[[], Any], engine: Any, *_: Any) -> Any:
        trap.step = engine.progress.steps + 1
        trap.reach(State.STEP)
        result, ledger = go(), engine.buffer.ledger
        trap.tell(State.STEP, samples=engine.progress.samples, produced=sum(ledger.produced))
        return result

    def drain(go: Callable[[], Any], *_: Any) -> Any:
        trap.reach(State.DRAINING)
        return go()

    _wrap(KPoolEngine, "start", start)
    _wrap(KPoolEngine, "report", report)
    _wrap(KPoolEngine, "_refilled", drain)


def _trap_rounds(trap: Trap) -> None:
    from tsugi_kpool.engine.aggregator import Aggregator

    def form(go: Callable[[], Any], _: Any, order: Any) -> Any:
        trap.tell(State.FORMING, generation=order.generation)
        trap.reach(State.FORMING)
        return go()

    def aggregate(go: Callable[[], Any], _: Any, fire: Any) -> Any:
        trap.round = fire.round
        return go()

    _wrap(Aggregator, "_form", form)
    _wrap(Aggregator, "_aggregate", aggregate)


def _trap_commits(trap: Trap) -> None:
    from tsugi_kpool.engine.aggregator import Aggregator

    def commit(go: Callable[[], Any], aggregator: Any, *_: Any) -> Any:
        trap.reach(State.COMMITTING)
        before = aggregator.version
        result = go()
        if aggregator.version > before:
            trap.tell(State.COMMITTED, version=aggregator.version, round=aggregator.round)
        trap.reach(State.COMMITTED)
        return result

    _wrap(Aggregator, "_commit", commit)


def _trap_shipping(trap: Trap) -> None:
    from tsugi_kpool.engine.buffer import ElasticBuffer
    from tsugi_kpool.engine.collective import GlooGroup
    from tsugi_kpool.exchange.client import ExchangeClient

    def contribution(go: Callable[[], Any], buffer: Any, *_: Any) -> Any:
        found, produced = go(), sum(buffer.ledger.produced)
        trap.tell(State.FIRED, round=trap.round, tokens=sum(found.shipment.tokens), produced=produced)
        return found

    def gather(go: Callable[[], Any], *_: Any) -> Any:
        trap.reach(State.FIRED)
        trap.reach_soon(State.GATHERING)
        return go()

    _wrap(ElasticBuffer, "contribution", contribution)
    _wrap(GlooGroup, "gather", gather)
    _wrap(ExchangeClient, "reduce_with", gather)


def _trap_reports(trap: Trap) -> None:
    from tsugi_kpool.core.messages import Reduced
    from tsugi_kpool.sideband.link import Link

    def apply_rounds(go: Callable[[], Any], _: Any, message: Any) -> Any:
        if not isinstance(message, Reduced):
            return go()
        trap.reach(State.REDUCED)
        result = go()
        trap.reach(State.REPORTED)
        return result

    _wrap(Link, "report", apply_rounds)


def _in_the_hub(trap: Trap) -> None:
    from tsugi_kpool.sideband.hub.journal import Journal

    counts: Counter[str] = Counter()
    states = {state.value for state in State}

    noted: list[tuple[str, int]] = []
    """Kind of record, and how many of it there have been, of what is not on the medium yet."""

    def note(go: Callable[[], Any], _: Any, records: Any, *__: Any) -> Any:
        for name in (type(each).__name__ for each in records):
            if f"writing {name}" in states:
                counts[name] += 1
                noted.append((name, counts[name]))
        return go()

    def flush(go: Callable[[], Any], *_: Any) -> Any:
        names = list(noted)
        noted.clear()
        for name, count in names:
            trap.reach(State(f"writing {name}"), count)
        result = go()
        for name, count in names:
            trap.reach(State(f"written {name}"), count)
        return result

    _wrap(Journal, "note", note)
    _wrap(Journal, "flush", flush)
