"""`tsugi console`: watch a run from another terminal, or replay a finished one."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

from tsugi_cli.record.answer import Answer
from tsugi_cli.record.meant import meant
from tsugi_cli.record.run_dir import RunPaths
from tsugi_cli.record.run_lock import holder
from tsugi_cli.record.status_log import restore
from tsugi_kpool.core.messages import FleetStatus
from tsugi_kpool.core.renamed import renewed
from tsugi_kpool.errors import ExitCode, SidebandError
from tsugi_kpool.foreign import read_plain
from tsugi_kpool.sideband import keys as sideband_keys
from tsugi_kpool.sideband.observer import ask_status

from .choose import answering
from .console import Console
from .live import LiveConsole
from .replay import UNPACED_S, Frame, Records, moments, replay

TURN_S = 0.5
"""Period in which an attached console asks the hub."""
ASK_S = 2.0
"""Timeout of the hub's answer."""
GIVE_UP_S = 30.0
"""A hub that has not answered for this long is gone, and not restarting."""


def show(run: str | None, speed: float | None, plain: bool, out: Answer) -> int:
    """Attach to a running run, else replay it; returns the exit code.

    Raises:
        ConfigError: there is no such run, or it has recorded nothing.
        SidebandError: the hub went away and never came back.
    """
    paths = meant(run)
    status = None if paths.summary.exists() or speed is not None else _ask(paths)
    console = answering(out, plain)
    with console:
        if status is not None:
            return _Attached(paths, console).follow(status)
        lost = replay(paths, console, speed, speed is not None or isinstance(console, LiveConsole), time.sleep)
        if lost:
            console.message(lost)
        if not (paths.summary.exists() or paths.slot.exists()):  # a guest's has none
            console.message(_no_end(paths))
    return ExitCode.OK


def _no_end(paths: RunPaths) -> str:
    """Return why a run without a summary does not answer, and what to do."""
    if who := holder(paths):
        return f"the launcher ({who}) is there and its hub does not answer; run directory: {paths.root}"
    again = f"to go on: tsugi finetune resume={paths.root}" if paths.checkpoints.exists() else str(paths.root)
    return f"the launcher has gone without an end; {again}"


def _ask(paths: RunPaths) -> FleetStatus | None:
    """Return the fleet's status, or None when no hub answers."""
    if not paths.keys.exists():
        return None
    try:
        return ask_status(sideband_keys.load(paths.keys), ASK_S)
    except SidebandError:
        return None


class _Attached:
    """A console that follows a run of another process."""

    def __init__(self, paths: RunPaths, console: Console) -> None:
        self._paths, self._console = paths, console
        self._records = Records(paths)

    def follow(self, status: FleetStatus | None) -> int:
        """Show the run until it ends; the picture contains its past from the beginning.

        Raises:
            SidebandError: the hub went away and did not come back.
        """
        self._console.remember(self._past())
        heard_s = time.monotonic()
        while not self._paths.summary.exists() and not self._console.broken:  # nobody looks any more: it is no run
            for event in self._records.tails["events"].read():
                self._console.event(event)
            if status is not None:
                heard_s = time.monotonic()
                self._console.show(status)
            elif time.monotonic() - heard_s > GIVE_UP_S:
                raise SidebandError(f"no answer for {GIVE_UP_S:g} s: {_no_end(self._paths)}")
            time.sleep(TURN_S)
            status = _ask(self._paths)
        if not self._console.broken:
            self._end(status)
        return ExitCode.OK

    def _end(self, status: FleetStatus | None) -> None:
        """End as the launcher does: with the report or, without one, the last picture and the error."""
        for event in self._records.tails["events"].read():
            self._console.event(event)
        summary = _summary(self._paths)
        if summary.get("outcome") != "failed":
            self._console.report(summary)
            return
        for record in self._records.tails["status"].read():
            status = restore(record) or status
        if status is not None:
            self._console.show(status)
        self._console.message(f"the run has failed; what there is lies in {self._paths.root}")

    def _past(self) -> Iterator[FleetStatus | dict[str, Any]]:
        for moment in moments(self._records, self._paths.root.name, UNPACED_S):
            yield moment.status if isinstance(moment, Frame) else moment


def _summary(paths: RunPaths) -> dict[str, Any]:
    """Return summary.json, or as much of it as an end screen needs."""
    try:
        summary = json.loads(read_plain(paths.summary))
    except (OSError, ValueError, RecursionError):
        summary = None
    return dict(renewed(summary)) if isinstance(summary, dict) else {"run": paths.root.name, "outcome": "ended"}
