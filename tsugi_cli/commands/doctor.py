"""`tsugi doctor`."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from .options import Debug, Json

Hub = Annotated[
    str | None,
    typer.Option(
        "--hub", metavar="ADDRESS|TOKEN|-", help="Would this machine get into that run? - reads a token from stdin."
    ),
]
Insecure = Annotated[bool, typer.Option("--insecure", help="That hub runs with sideband.insecure=true.")]


def doctor(
    hub: Hub = None,
    insecure: Insecure = False,
    json: Json = False,
    _debug: Debug = False,
) -> None:
    """Look at this machine: versions, GPUs, memory, disk, limits, each with what to do. Code 4: a run would fail.

    With --hub it also tries whether a hub and its exchange are reached from here, and have a place.

    Exit code then, as of `tsugi join`: 11 not reached, 12 it is too early, 13 the run is over, 14 no replica is
    missing, 5 another version, or no place for another reason.
    """
    from tsugi_cli.launch.doctor import examine, gather, lines
    from tsugi_cli.launch.reach import try_hub
    from tsugi_cli.record.answer import Answer
    from tsugi_kpool.errors import ConfigError, ExitCode

    if insecure and hub is None:
        raise ConfigError(["--insecure: says how --hub is asked, which is missing"])
    reached = None if hub is None else try_hub(hub, insecure, sys.stdin)
    found, out = [*examine(gather()), *(reached.findings if reached else ())], Answer.of(json)
    for each, words in zip(found, lines(found), strict=True):
        out.tell(each, words)
    if reached and reached.exit_code:
        raise typer.Exit(reached.exit_code)
    if any(each.verdict == "problem" for each in found):
        raise typer.Exit(ExitCode.ENVIRONMENT)
