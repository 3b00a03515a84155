"""`tsugi console` and `tsugi stop`: a run from another terminal."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import Debug, Json


def console(
    run: Annotated[
        str | None, typer.Option("--run", help="Run directory, or latest; default: the newest run.")
    ] = None,
    speed: Annotated[
        float | None, typer.Option("--speed", min=0.01, help="Replay so many times as fast as it was; default: fast.")
    ] = None,
    plain: Annotated[bool, typer.Option("--plain", help="Lines instead of the live console.")] = False,
    json: Json = False,
    _debug: Debug = False,
) -> None:
    """Look at a run from another terminal while it goes on, or see a finished one again."""
    from tsugi_cli.console.attach import show
    from tsugi_cli.record.answer import Answer

    raise typer.Exit(show(run, speed, plain, Answer.of(json)))


def stop(
    run: Annotated[Path | None, typer.Argument(metavar="[RUN]", help="Its directory; default: the newest.")] = None,
    named: Annotated[Path | None, typer.Option("--run", help="The same.")] = None,
    timeout_s: Annotated[float, typer.Option("--timeout", min=0.1, help="Seconds that it may take to end.")] = 180.0,
    json: Json = False,
    _debug: Debug = False,
) -> None:
    """End a run in good order from another terminal, as Ctrl-C does where it was started."""
    from tsugi_cli.launch.stop import stop as end
    from tsugi_cli.record.answer import Answer

    raise typer.Exit(end(named or run, timeout_s, Answer.of(json)))
