"""`tsugi stop`: the owner ends a run in good order, from any terminal that can read its key file."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from tsugi_cli.console.format import safe
from tsugi_cli.record.answer import Answer
from tsugi_cli.record.meant import meant, unheard
from tsugi_cli.record.run_dir import RunPaths
from tsugi_kpool.core.messages import Ack, StopRun
from tsugi_kpool.errors import ConfigError, ExitCode, OverError, SidebandError
from tsugi_kpool.foreign import read_plain
from tsugi_kpool.sideband import keys as sideband_keys
from tsugi_kpool.sideband.keys import RunKeys
from tsugi_kpool.sideband.observer import Observer

ANSWER_S = 5.0
"""Timeout of a hub's answer: it does not know this key, or is not there."""
TOLD = ("outcome", "samples", "samples_total", "go_on")
"""Fields of the summary that the answer has."""
NAMING = "behind: tsugi stop DIR"
LOOK_S = 0.1
"""Period of checking whether the run has ended."""


def stop(run: Path | None, timeout_s: float, out: Answer) -> int:
    """Tell a run's hub to stop, wait for the end, and report it; returns the exit code.

    Args:
        run: Its directory; None is the newest run.
        timeout_s: How long it may take to end.
        out: Where the answer goes.

    Raises:
        ConfigError: there is no such run, or its keys are no owner's.
        OverError: it has ended already.
        SidebandError: no hub answers, or the run has not ended in time.
    """
    paths = meant(run, NAMING)
    if not paths.config.exists():
        raise ConfigError([f"{paths.root} is no run directory of `tsugi finetune`: it has no config.yaml"])
    _check_going(paths)
    try:
        with Observer(_owners(paths)) as hub:
            hub.ask(StopRun(), Ack, ANSWER_S)
    except SidebandError:
        _check_going(paths)  # it has ended meanwhile
        raise
    out.tell({"stopping": paths.root}, f"stopping {paths.root} after its present steps")
    _await_end(paths, timeout_s)
    summary = _summary(paths)
    out.tell({name: summary.get(name) for name in TOLD}, _words(paths, summary))
    return ExitCode.TRAINING if summary.get("outcome") == "failed" else ExitCode.OK


def _check_going(paths: RunPaths) -> None:
    if paths.summary.exists():
        raise OverError(f"{paths.root}: this run has ended already ({_outcome(paths)})")


def _owners(paths: RunPaths) -> RunKeys:
    """Return the keys that stop this run.

    Raises:
        ConfigError: they are not here.
        SidebandError: there are none yet, or the file cannot be used.
    """
    if paths.slot.exists():
        place = "this is a replica of a run that was started on another machine"
        ways = "its owner stops it there; Ctrl-C in `tsugi join` takes this one back"
        raise ConfigError([f"{paths.root}: {place}: {ways}"])
    if not paths.keys.exists():
        raise SidebandError(f"{unheard(paths)}; Ctrl-C where it was started")
    keys = sideband_keys.load(paths.keys).as_owner()
    if keys is None:
        older = "its keys are of an earlier version and hold no owner's key"
        raise ConfigError([f"{paths.root}: {older}: press Ctrl-C where it was started, or send its process SIGTERM"])
    return keys


def _await_end(paths: RunPaths, timeout_s: float) -> None:
    """Wait for the summary, which the launcher writes last.

    Raises:
        SidebandError: it has not in time.
    """
    deadline_s = time.monotonic() + timeout_s
    while not paths.summary.exists():
        if time.monotonic() > deadline_s:
            raise SidebandError(f"{paths.root} was told to stop, and has not ended within {timeout_s:g} s")
        time.sleep(LOOK_S)


def _words(paths: RunPaths, summary: dict[str, Any]) -> list[str]:
    trained = f"{summary.get('samples', '?')} of {summary.get('samples_total', '?')} samples"
    lines = [f"{_outcome(paths)} at {trained}"]
    if summary.get("outcome") != "finished":
        lines.append(str(summary.get("go_on") or ""))
    return [safe(line) for line in lines if line]


def _outcome(paths: RunPaths) -> str:
    return str(_summary(paths).get("outcome") or "ended")


def _summary(paths: RunPaths) -> dict[str, Any]:
    try:
        found = json.loads(read_plain(paths.summary))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
