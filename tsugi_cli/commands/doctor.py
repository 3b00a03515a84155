"""`tsugi doctor`."""

from __future__ import annotations

import json as texts
from dataclasses import asdict
from typing import Annotated

import typer

from .options import Debug


def doctor(
    json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
    _debug: Debug = False,
) -> None:
    """Look at this machine: versions, GPUs, memory, disk, limits, each with what to do. Code 4: a run would fail."""
    from tsugi_cli.launch.doctor import examine, gather, lines
    from tsugi_kpool.errors import ExitCode

    found = examine(gather())
    for line in [texts.dumps(asdict(each)) for each in found] if json else lines(found):
        typer.echo(line)
    if any(each.verdict == "problem" for each in found):
        raise typer.Exit(ExitCode.ENVIRONMENT)
