"""`tsugi report`: reads runs, and writes the page or prints the numbers behind it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from tsugi_cli.record.answer import Answer
from tsugi_cli.record.atomic import write_atomically
from tsugi_kpool.errors import ConfigError

from .facts import RunFacts, plain
from .gather import found, gather
from .html import MADE_BY
from .report import page


def report(given: Sequence[str], out: Path | None, answer: Answer) -> None:
    """Report on these runs.

    Args:
        given: Run directories; none: the newest run.
        out: Where the page goes; None: a file in the working directory that is named after the run.
        answer: With `--json` one object for each run; the page is written only where `out` asks for it.

    Raises:
        ConfigError: one is no run directory, or the page cannot be written there.
    """
    runs = [gather(paths) for paths in found(given)]
    for run in runs:
        answer.put(plain(asdict(run)))
    if out is not None or not answer.json:
        path = out or Path(usual_name(runs))
        write(path, page(runs))
        answer.people.write(f"{path}: the report of {', '.join(run.run for run in runs)}\n")


def usual_name(runs: Sequence[RunFacts]) -> str:
    """Return the name of the page where nobody has named it."""
    return f"{runs[0].run}.report.html" if len(runs) == 1 else "runs.report.html"


def write(path: Path, text: str) -> None:
    """Write the page, over an earlier one but over nothing else.

    Raises:
        ConfigError: something else is there, or it cannot be written.
    """
    try:
        if path.exists() and not _ours(path):
            raise ConfigError([f"--out={path}: this is no page of Tsugi's, and stays; name another file"])
        write_atomically(path, text)
    except OSError as error:
        raise ConfigError([f"--out={path}: {error.strerror}"]) from error


def _ours(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open(encoding="utf-8", errors="replace") as file:
        return MADE_BY in file.read(500)
