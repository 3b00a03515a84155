"""What ended a replica: read from what torchrun leaves behind, and the error that the launcher ends with."""

from __future__ import annotations

import json
import re
import signal
from dataclasses import dataclass
from pathlib import Path

from tsugi_cli.record.run_dir import RunPaths
from tsugi_cli.record.worker_tag import signed
from tsugi_kpool import errors
from tsugi_kpool.errors import ExitCode, TrainingError, TsugiError

TRACEBACK_LINES = 12
NOT_ITS_OWN = frozenset({"CollectiveError", "FencedError", "QuarantinedError", "SidebandError"})
"""Errors that another caused: its other worker has gone, or the fleet went on without it. The others train on."""
FROM_OUTSIDE = frozenset({"LaunchError", "FencedError", "QuarantinedError", "SidebandError"})
"""Errors whose one line says what ended a replica; their tracebacks help nobody."""
OF_THE_USER = frozenset({"ConfigError", "DataError", "MachineError"})
"""Errors that say what the user can mend; their tracebacks are in the log."""
_KILLED = re.compile(r"exitcode\s*: -(\d+)")
"""Pattern in torchrun's own report of its workers."""


@dataclass(frozen=True)
class Failure:
    """The first failure of a run."""

    replica: int
    exit_code: int
    text: str
    """The last lines of the worker's traceback."""
    log: Path
    worker: int | None = None
    """The worker's number, in a replica of several."""
    raised: bool = True
    """Whether it left a traceback; else it was killed."""
    came_up: bool = True
    """Whether it ended at work; else the fleet still waited for it."""

    @property
    def who(self) -> str:
        """The replica, and its worker if there are several."""
        return f"replica {self.replica}" + ("" if self.worker is None else f", worker {self.worker},")

    @property
    def own(self) -> bool:
        """Whether an error of its own has ended it, which would end others, too; no kill, and no error that another
        caused."""
        return self.raised and self.kind not in NOT_ITS_OWN

    @property
    def kind(self) -> str:
        """Name of the error's class, if there was an error."""
        return self.reason.partition(":")[0].rpartition(".")[2]

    @property
    def quarantined(self) -> bool:
        """Whether it was quarantined: then it is not started again."""
        return self.kind == "QuarantinedError"

    @property
    def reason(self) -> str:
        """The last line of its text that is no ruler."""
        lines = (line.strip() for line in reversed(self.text.splitlines()))
        return next((line for line in lines if any(map(str.isalnum, line))), "no reason is known")


def read_failure(paths: RunPaths, replica: int, exit_code: int) -> tuple[float, Failure]:
    """Return (time, failure) of a replica whose agent has ended with this code; without a traceback the time is
    infinite."""
    when_s, text, raised = _error(paths, replica)
    killed = _KILLED.findall(text) if not raised else []
    if killed:
        text = f"{text}\nits worker was killed ({_signal_name(int(killed[-1]))})"
    elif exit_code < 0:
        text = f"{text}\nits agent was killed ({_signal_name(-exit_code)})"
    text, worker = signed(text.lstrip("\n") or f"exit code {exit_code}, no traceback")
    return when_s, Failure(replica, exit_code, text, paths.log(replica, worker or 0), worker, raised)


def _error(paths: RunPaths, replica: int) -> tuple[float, str, bool]:
    """Return (time, end of the traceback, whether there is one) of a replica's failure; without one the time is
    infinite."""
    try:
        message = json.loads(paths.error(replica).read_text(encoding="utf-8"))["message"]
        extra = message.get("extraInfo", {}) if isinstance(message, dict) else {}
        text = extra.get("py_callstack") or (message if isinstance(message, str) else message["message"])
        return float(extra.get("timestamp", "inf")), _tail(str(text)), True
    except (OSError, ValueError, KeyError, TypeError):
        return float("inf"), _tail(_read_end(paths.log(replica))), False


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _tail(text: str) -> str:
    return "\n".join(text.rstrip().splitlines()[-TRACEBACK_LINES:])


def _read_end(path: Path, size: int = 8192) -> str:
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - size))
            return file.read().decode(errors="replace")
    except OSError:
        return ""


def failure_of(failure: Failure | None, reason: str | None) -> TsugiError | None:
    """Return one error with the failing replica's own text, with the exit code of its class."""
    told = _exit_code_of(reason)
    if reason is not None and (failure is None or (told is not None and not failure.raised)):
        error = TrainingError(reason)  # what it told the hub: a full disk may have had no room for its traceback
        error.exit_code = told or ExitCode.TRAINING
        return error
    if failure is None:
        return None
    error = TrainingError(_text_of(failure))
    error.exit_code = _exit_code_of(failure.reason) or (ExitCode.TRAINING if failure.came_up else ExitCode.LAUNCH)
    return error


def _text_of(failure: Failure) -> str:
    if failure.kind in FROM_OUTSIDE:
        return f"{failure.who} has ended: {failure.reason.partition(': ')[2]} (log: {failure.log})"
    if failure.kind in OF_THE_USER:
        return f"{failure.who} failed: {failure.reason.partition(': ')[2]} (log: {failure.log})"
    return f"{failure.who} failed:\n{failure.text}\nlog: {failure.log}"


def _exit_code_of(reason: str | None) -> ExitCode | None:
    """Return the exit code of the error whose name begins a reason, if it is one of ours."""
    name = (reason or "").partition(":")[0].rpartition(".")[2]
    kind = getattr(errors, name, None)
    return kind.exit_code if isinstance(kind, type) and issubclass(kind, TsugiError) else None
