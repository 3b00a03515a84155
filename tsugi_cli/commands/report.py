"""`tsugi report`: runs as one HTML page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import Debug, Json


def report(
    runs: Annotated[
        list[str] | None, typer.Argument(metavar="[RUN]...", help="Directories, or latest; default: the newest run.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="The page; default: RUN.report.html in this directory.")
    ] = None,
    json: Json = False,
    _debug: Debug = False,
) -> None:
    """Write a run, or several side by side, as one HTML page: loss, timeline, rounds, samples, settings, events."""
    from tsugi_cli.pages.written import report as write
    from tsugi_cli.record.answer import Answer

    write(runs or [], out, Answer.of(json))
