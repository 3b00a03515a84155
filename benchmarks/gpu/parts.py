"""Programs that run one after the other: each with its own time limit, and none ends the others."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

SAID = 1500
"""Characters of a failed program's last words that are kept."""
LOGS = 3
"""Of the processes that it had started, the newest."""
MOST_S = 480.0
"""All parts together."""
ROOT = Path(__file__).resolve().parents[2]
Read = Callable[[Path], dict[str, Any]]


class Unusable(Exception):
    """A part ended without the figures that it is for."""


def figures_file(folder: Path) -> dict[str, Any]:
    """What most parts leave behind: figures.json in their folder."""
    found: dict[str, Any] = json.loads((folder / "figures.json").read_text(encoding="utf-8"))
    return found


@dataclass(frozen=True)
class Part:
    """One program of a check.

    Args:
        name: Its key in the result file, and the name of its folder.
        limit_s: Its time, with all that it starts.
        command: Called with the part's own folder.
        read: Its figures, out of that folder.
        fine: Exit codes with which there are figures.
        why_not: Asked when its turn has come: why it cannot run here; None: it can.
    """

    name: str
    limit_s: float
    command: Callable[[Path], Sequence[str]]
    read: Read = figures_file
    fine: tuple[int, ...] = (0,)
    why_not: Callable[[], str | None] = lambda: None


def run_all(parts: Sequence[Part], folder: Path, most_s: float = MOST_S) -> dict[str, dict[str, Any]]:
    """Each part's figures, or why it has none."""
    until_s, found = time.monotonic() + most_s, {}
    for part in parts:
        left_s = until_s - time.monotonic()
        outcome = run(part, folder / part.name, min(part.limit_s, left_s))
        print(f"{part.name}: {outcome.get('why_not') or outcome['figures']}", flush=True)
        found[part.name] = outcome
    return found


def run(part: Part, folder: Path, limit_s: float) -> dict[str, Any]:
    """One part to its end: its command, seconds, and `figures` or `why_not`."""
    reason = "the parts before it took all the time" if limit_s <= 0 else part.why_not()
    if reason is not None:
        return {"why_not": reason}
    folder.mkdir(parents=True)
    command = list(part.command(folder))
    told = {"command": " ".join(_plain(word, folder) for word in command)}
    started_s = time.monotonic()
    try:
        end = {"figures": _figures(part, command, folder, limit_s)}
    except Unusable as error:
        end = {"why_not": str(error)}
    except (OSError, ValueError, LookupError, TypeError) as error:  # its figures are not as they are read
        end = {"why_not": f"{type(error).__name__}: {error}"}
    return {**told, "seconds": round(time.monotonic() - started_s, 1), **end}


def _plain(word: str, folder: Path) -> str:
    """A word of the command without what is true of one machine only."""
    return word.replace(sys.executable, "python").replace(str(folder.parent), "SCRATCH").replace(f"{ROOT}/", "")


def _figures(part: Part, command: list[str], folder: Path, limit_s: float) -> dict[str, Any]:
    output = folder / "output.txt"
    with output.open("wb") as file:
        process = subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT)
        try:
            code = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            raise Unusable(f"not finished after {limit_s:.0f} s; it last said: {_said(folder)}") from None
        finally:
            _end(process)
    if code not in part.fine:
        raise Unusable(f"exit code {code}: {_said(folder)}")
    return part.read(folder)


def _said(folder: Path) -> str:
    """The last words of the program and of what it had started: the folder does not outlive the check."""
    logs = sorted(folder.rglob("*.log"), key=lambda each: each.stat().st_mtime)[-LOGS:]
    return "\n".join([_tail(folder / "output.txt"), *(f"{each.name}: {_tail(each)}" for each in logs)])


def _tail(output: Path) -> str:
    return output.read_text(encoding="utf-8", errors="replace").strip()[-SAID:]


def _end(process: subprocess.Popen[bytes]) -> None:
    """End what still runs of it, and all that it has started."""
    if process.poll() is not None:
        return
    whole = psutil.Process(process.pid)
    for each in [*whole.children(recursive=True), whole]:
        try:
            each.kill()
        except psutil.NoSuchProcess:
            continue
    process.wait()
