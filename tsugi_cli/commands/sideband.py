"""`tsugi sideband`: status, keys and tokens of a running fleet."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from .options import Debug, Json, Run

app = typer.Typer(no_args_is_help=True, help="Ask a running fleet how it is.")


@app.command()
def status(
    run: Run = None,
    json: Json = False,
    watching: Annotated[
        bool, typer.Option("--watch", help="Ask every second until the run has ended, or Ctrl-C.")
    ] = False,
    addr: Annotated[str | None, typer.Option("--addr", help="A hub elsewhere: tcp://host:51820.")] = None,
    token: Annotated[
        str | None, typer.Option("--token", help="What `tsugi sideband token` prints there; - reads stdin.")
    ] = None,
    timeout_s: Annotated[float, typer.Option("--timeout", min=0.1, help="Seconds to wait for the hub.")] = 3.0,
    _debug: Debug = False,
) -> None:
    """Show the fleet of a `tsugi finetune`: who is slow, and by how much.

    Without --run or --addr it finds this user's newest run by itself.

    Exit code: 0 healthy, 10 degraded (a replica is slow or silent, or the run has failed), 7 no quorum,
    11 no hub answers, 2 no run is there; with --watch that of the last answer. A run of this machine that has ended
    still answers: 0, or 10 if it has failed.
    """
    from tsugi_cli.console.status import Question, show, watch
    from tsugi_cli.launch.keys import token_for
    from tsugi_cli.record.answer import Answer

    question = Question(run, timeout_s, addr, token_for(addr, token, sys.stdin))
    raise typer.Exit((watch if watching else show)(question, Answer.of(json)))


@app.command()
def keygen(
    out: Annotated[Path, typer.Option("--out", help="The new file.")] = Path("sideband-keys.json"),
    json: Json = False,
    _debug: Debug = False,
) -> None:
    """Make a hub's keys beforehand (sideband.keys=FILE), and print the tokens for members and observers."""
    from tsugi_cli.launch.keys import keygen as make
    from tsugi_cli.record.answer import Answer

    raise typer.Exit(make(out, Answer.of(json)))


@app.command()
def token(
    run: Run = None,
    role: Annotated[
        str | None, typer.Option("--role", metavar="member|observer", help="Print this one alone, address in it.")
    ] = None,
    json: Json = False,
    _debug: Debug = False,
) -> None:
    """Print a run's tokens: whoever has the member's may train, whoever has the observer's may ask for the status."""
    from tsugi_cli.launch.keys import show_tokens
    from tsugi_cli.record.answer import Answer

    raise typer.Exit(show_tokens(run, Answer.of(json), role))
