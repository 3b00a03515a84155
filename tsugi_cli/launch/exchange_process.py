"""The owner of an exchange's process: starts it, starts it again when it dies, ends it. No sockets of its own."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable

import msgspec

from tsugi_cli.signals import deaf
from tsugi_kpool.core.hub.refusals import Kind
from tsugi_kpool.errors import MachineError
from tsugi_kpool.exchange.process import Orders, Report

COMMAND = (sys.executable, "-m", "tsugi_kpool.exchange.process")
START_S = 30.0
"""Time to listen."""
END_S = 10.0
PAUSE_S = 0.2
MOST_RESTARTS = 20
"""Of one run. Its books are on the disk, and members give their parts again: a restart costs a round's time."""
RESTARTED = "the exchange's process has ended ({}); another one goes on from its books"
LOST = (
    "the round that was going out, and what coding had lost of {} adapters' means, were on no disk: if not "
    "all members had it, they ship the same once more"
)
BEHIND = "the exchange's newest round is not on the hub's disk: {}"


class ExchangeProcess:
    """One exchange for as long as a run lasts. `start`, `stop`; `moved` for whoever shows it.

    Args:
        bind: The address to listen at.
        port: 0 takes a free one.
        orders: What it must know.
        say: Told, in words, what a user should know; called in the owner's thread, must not raise.
        refused: Told of what was refused, by kind; the same thread.
        failed: Told why there is no exchange any more; the same thread.
    """

    def __init__(
        self,
        bind: str,
        port: int,
        orders: Orders,
        say: Callable[[str], None],
        refused: Callable[[Kind, int], None],
        failed: Callable[[str], None],
    ) -> None:
        self._bind, self._port, self._orders = bind, port, orders
        self._say, self._refused, self._failed = say, refused, failed
        self._process: subprocess.Popen[bytes] | None = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="tsugi-exchange", daemon=True)
        self.report = Report(0)
        """The newest report, with what processes before this one have moved."""
        self._before = Report(0)
        self._told = Counter[str]()
        self._behind = ""

    def start(self) -> int:
        """Start it; returns the port at which it listens.

        Raises:
            MachineError: it cannot listen there, or its books cannot be gone on from.
        """
        first = self._begin()
        if first.error or not first.port:
            self._end()
            raise MachineError(first.error or "the exchange's process did not start")
        self._port = first.port  # another one listens there, too
        if first.note:
            self._say(first.note)
        self._thread.start()
        return first.port

    def stop(self) -> None:
        """End the process, and wait for it."""
        self._stopping.set()
        self._end()
        if self._thread.ident is not None:
            self._thread.join(END_S)
            self._end()  # the thread was about to start another one

    @property
    def pid(self) -> int | None:
        """Of the process that is the exchange now."""
        return None if self._process is None else self._process.pid

    def _begin(self) -> Report:
        """Start a process; returns its first report."""
        pipe = subprocess.PIPE
        with deaf():
            command = [*COMMAND, f"--at={self._bind}:{self._port}"]
            self._process = process = subprocess.Popen(command, stdin=pipe, stdout=pipe, start_new_session=True)
        if process.stdin is None:
            return Report(0)
        # What does not listen in time is ended: its output ends with it, and we wait for nothing for ever.
        late = threading.Timer(START_S, process.kill)
        late.daemon = True
        late.start()
        try:
            orders = msgspec.structs.replace(self._orders, lost=self.report.unwritten)
            process.stdin.write(msgspec.json.encode(orders) + b"\n")
            process.stdin.flush()
            return self._read(process)
        except OSError:
            return Report(0)
        finally:
            late.cancel()

    def _read(self, process: subprocess.Popen[bytes]) -> Report:
        line = process.stdout.readline() if process.stdout is not None else b""
        try:
            return msgspec.json.decode(line, type=Report)
        except msgspec.MsgspecError:
            return Report(0)

    def _watch(self) -> None:
        restarts = 0
        while not self._stopping.is_set() and (process := self._process) is not None:
            report = self._read(process)
            if report.port:
                self._heard(report)
                continue
            self._end()  # one that says nothing any more, but is still there, is none
            code = process.wait()
            restarts += 1
            if self._stopping.is_set() or not self._again(report.error or _end_of(code), restarts):
                return

    def _again(self, reason: str, restarts: int) -> bool:
        """Start another process; returns whether there is one."""
        if restarts > MOST_RESTARTS:
            self._failed(f"the exchange has ended {restarts} times: {reason}")
            return False
        self._say(RESTARTED.format(reason))
        if self.report.unwritten:
            self._say(LOST.format(len(self.report.unwritten)))
        self._before, self._told = self.report, Counter()
        if self._stopping.wait(PAUSE_S):
            return False
        if (first := self._begin()).error:
            self._failed(first.error)
        return not first.error

    def _heard(self, report: Report) -> None:
        before = self._before
        self.report = msgspec.structs.replace(
            report, received=before.received + report.received, sent=before.sent + report.sent
        )
        for kind, count in report.refused.items():
            if count > self._told[kind]:
                self._refused(Kind(kind), count - self._told[kind])
                self._told[kind] = count
        if report.behind and report.behind != self._behind:
            self._say(BEHIND.format(report.behind))
        self._behind = report.behind

    def _end(self) -> None:
        process = self._process
        if process is None:
            return
        try:
            if process.stdin is not None:
                process.stdin.close()
            process.wait(END_S)
        except (OSError, subprocess.TimeoutExpired):
            process.kill()
            process.wait()


def _end_of(code: int) -> str:
    return f"exit code {code}" if code >= 0 else signal.Signals(-code).name
