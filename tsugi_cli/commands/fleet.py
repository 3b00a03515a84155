"""`tsugi join` and `tsugi hub`: a run on several machines."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from .options import Debug, Json, Overrides

Patience = Annotated[
    float | None,
    typer.Option(
        "--patience", metavar="SECONDS", help="For a hub that was lost; then this machine keeps its adapter."
    ),
]


def join(
    address: Annotated[
        str,
        typer.Argument(metavar="ADDRESS|TOKEN|-", help="tsugi2-..., tcp://host:51820, or - for a token from stdin"),
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="What is different on this machine, such as data.path=..."),
    ] = None,
    token: Annotated[
        str | None,
        typer.Option("--token", help="- reads it from stdin; else TSUGI_TOKEN_FILE is read, or you are asked."),
    ] = None,
    insecure: Annotated[bool, typer.Option("--insecure", help="The hub runs with sideband.insecure=true.")] = False,
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Agree beforehand to what the run names from outside Tsugi.")
    ] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Wait until the hub is there and has a place.")] = False,
    patience_s: Patience = None,
    replicas: Annotated[int, typer.Option("--replicas", min=1, max=64, help="So many replicas here.")] = 1,
    workers: Annotated[
        int | None, typer.Option("--workers", min=1, max=64, help="Of each replica here, such as GPUs that share it.")
    ] = None,
    devices: Annotated[str | None, typer.Option("--devices", help="GPUs to use, such as 0,1; default: all.")] = None,
    plain: Annotated[bool, typer.Option("--plain", help="Lines instead of the live console.")] = False,
    json: Json = False,
    _debug: Debug = False,
) -> None:
    """Train one replica, or several, of a run that was started on another machine.

    The address and a token are all it needs.

    Exit code: 11 no hub answers, 12 it is too early, 13 the run is over, 14 no replica is missing,
    5 the hub has refused for another reason.

    Where the run names functions, models or packages that do not come with Tsugi, you are asked once.
    """
    from tsugi_cli.hosts.devices import named, use
    from tsugi_cli.hosts.leash import Leash, first_line
    from tsugi_cli.launch.consent import Consent
    from tsugi_cli.launch.invitation import Invitation
    from tsugi_cli.launch.join import join as start
    from tsugi_cli.launch.several import join_several
    from tsugi_cli.record.answer import Answer

    out = Answer.of(json)
    piped = address == "-"
    address = first_line(sys.stdin.fileno()) if piped else address
    invitation = Invitation.read(address, token, insecure, sys.stdin)
    own = [*(overrides or []), *_spelled({"sideband.hub_timeout_s": patience_s, "topology.workers": workers})]
    again = ["tsugi", "join", invitation.keys.address or "", *own, *(["--insecure"] if insecure else [])]
    consent = Consent(yes, again, sys.stdin, out.people)
    with Leash(sys.stdin.fileno() if piped else None):
        if replicas > 1:
            invitation = invitation.settled(wait, out.people.write)
            raise typer.Exit(join_several(invitation, own, replicas, named(devices), out, yes, wait))
        use(named(devices), workers or 1)
        raise typer.Exit(start(invitation, own, plain, out, consent, wait))


def _spelled(options: dict[str, float | None]) -> list[str]:
    """Return the settings that these options stand for."""
    return [f"{key}={value}" for key, value in options.items() if value is not None]


def hub(
    overrides: Overrides = None,
    run: Annotated[Path | None, typer.Option("--run", help="Serve this existing run again.")] = None,
    plain: Annotated[bool, typer.Option("--plain", help="Lines instead of the live console.")] = False,
    json: Json = False,
    _debug: Debug = False,
) -> None:
    """Run the hub alone: it trains nothing, and every replica comes with `tsugi join`."""
    from tsugi_cli.launch.run import hub_alone
    from tsugi_cli.record.answer import Answer

    raise typer.Exit(hub_alone(overrides or [], run, plain, Answer.of(json)))
