"""`tsugi sideband status`: ask the hub of a run, show the same table as the console."""

from __future__ import annotations

from pathlib import Path
from typing import TextIO

import msgspec

from tsugi_kpool.core.messages import FleetStatus
from tsugi_kpool.core.status import SILENT_S
from tsugi_kpool.errors import ExitCode, SidebandError
from tsugi_kpool.sideband import keys as sideband_keys
from tsugi_kpool.sideband.observer import ask_status

from . import view
from .console import terminal
from .run_dir import find_run


def show(run: Path | None, as_json: bool, timeout_s: float, out: TextIO) -> int:
    """Print the status; returns the exit code: 0 healthy, 10 degraded.

    Raises:
        SidebandError: there is no run, or its hub does not answer.
    """
    paths = find_run(run)
    if paths is None:
        raise SidebandError("no run found here; start one with `tsugi finetune`, or name one with --run DIR")
    if not paths.keys.exists():
        raise SidebandError(f"{paths.root} has no sideband keys: is it a run directory, and did the run start?")
    try:
        status = ask_status(sideband_keys.load(paths.keys), timeout_s)
    except SidebandError as error:
        ended = " (the run has ended)" if paths.summary.exists() else ""
        raise SidebandError(f"{error}{ended}; run directory: {paths.root}") from error
    if as_json:
        out.write(msgspec.json.format(msgspec.json.encode(status)).decode() + "\n")
    else:
        terminal(out).print(view.table(status))
    return ExitCode.DEGRADED if degraded(status) else ExitCode.OK


def degraded(status: FleetStatus) -> bool:
    """Whether something is wrong with the fleet: it failed, or a replica has gone silent."""
    silent = any(row.silent_s > SILENT_S and row.state != "done" for row in status.replicas)
    return status.stage == "failed" or silent
