"""`tsugi doctor`."""

from __future__ import annotations

import typer

from .options import Debug, Json


def doctor(
    json: Json = False,
    _debug: Debug = False,
) -> None:
    """Look at this machine: versions, GPUs, memory, disk, limits, each with what to do. Code 4: a run would fail."""
    from tsugi_cli.launch.doctor import examine, gather, lines
    from tsugi_cli.record.answer import Answer
    from tsugi_kpool.errors import ExitCode

    found, out = examine(gather()), Answer.of(json)
    for each, words in zip(found, lines(found), strict=True):
        out.tell(each, words)
    if any(each.verdict == "problem" for each in found):
        raise typer.Exit(ExitCode.ENVIRONMENT)
