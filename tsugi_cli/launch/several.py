"""`tsugi join --replicas N`: one machine brings several replicas, each a `tsugi join` of its own."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from tsugi_cli.console.choose import answering
from tsugi_cli.console.console import Console
from tsugi_cli.hosts.devices import VISIBLE, shares, visible
from tsugi_cli.hosts.joiners import Joiner, Joiners
from tsugi_cli.record.answer import Answer
from tsugi_cli.signals import Signals
from tsugi_kpool.core.messages import FleetStatus, StatusRequest
from tsugi_kpool.errors import ExitCode
from tsugi_kpool.sideband import token
from tsugi_kpool.sideband.keys import Role
from tsugi_kpool.sideband.observer import Observer

from .invitation import Invitation

ASK_S = 1.0
RUNS, WORKERS = "runs_dir=", "topology.workers="


def join_several(
    invitation: Invitation,
    own: Sequence[str],
    replicas: int,
    devices: Sequence[str] | None,
    out: Answer,
    yes: bool = False,
    waits: bool = False,
) -> int:
    """Start so many joins and look after them to their end; returns the exit code of the first that has failed.

    Args:
        invitation: To the hub, whose address is known.
        own: key=value, what is different on this machine.
        replicas: How many.
        devices: The GPUs that they may use; None: all that there are.
        out: Where the fleet is shown, in lines.
        yes: The user agrees to what the run names from outside Tsugi.
        waits: Until the hub is there and has places.

    Raises:
        ConfigError: too few devices were named.
    """
    found = visible(os.environ) if devices is None else devices
    shared = shares(found, replicas, _workers(own), devices is not None)
    folders = [Path(_runs_dir(own)) / str(number) for number in range(replicas)]
    joiners = Joiners(
        [
            Joiner(
                f"replica {number + 1} of {replicas} here",
                (*_command(invitation, yes, waits), *_without_runs(own), f"{RUNS}{folder}"),
                folder / "join.log",
                os.environ | ({VISIBLE: ",".join(shared[number])} if shared else {}),
            )
            for number, folder in enumerate(folders)
        ]
    )
    with Signals() as signals, answering(out, plain=True) as console, Observer(invitation.keys) as hub:
        console.message(f"{replicas} replicas join from here; what they write: {folders[0].parent}/*/join.log")
        joiners.start(_token(invitation))
        try:
            return _watch(joiners, signals, console, hub)
        finally:
            joiners.stop(0.0)


def _watch(joiners: Joiners, signals: Signals, console: Console, hub: Observer) -> int:
    """Show the fleet, and pass Ctrl-C on, until all have ended."""
    told, codes = 0, [int(ExitCode.OK)]
    while True:
        going = joiners.running()
        for ended in joiners.ended():
            codes.append(ended.code)
            last = (ended.words.strip().splitlines() or ["it has said nothing"])[-1]
            console.message(f"{ended.joiner.name}: {last}")
        if not going:
            return signals.exit_code if signals.count else next((code for code in codes if code), ExitCode.OK)
        if signals.count > told:
            told = signals.count
            joiners.ask_to_stop()
        hub.send(StatusRequest())
        message = hub.receive(ASK_S)
        if isinstance(message, FleetStatus):
            console.show(message)
            hub.receive(ASK_S)  # nothing else is asked for: a pause that a message ends


def _command(invitation: Invitation, yes: bool, waits: bool) -> tuple[str, ...]:
    asked = {"--yes": yes, "--wait": waits, "--insecure": not invitation.keys.curve}
    options = [option for option, wanted in asked.items() if wanted]
    return (sys.executable, "-m", "tsugi_cli.app", "join", "-", "--plain", *options)


def _token(invitation: Invitation) -> str:
    keys = invitation.keys
    return token.write(keys, Role.MEMBER, True) if keys.curve else keys.address or ""


def _runs_dir(own: Sequence[str]) -> str:
    return next((text.removeprefix(RUNS) for text in reversed(own) if text.startswith(RUNS)), "runs/joined")


def _workers(own: Sequence[str]) -> int:
    """Return the workers of each replica here; what is no number each join refuses by itself."""
    said = [text.removeprefix(WORKERS) for text in own if text.startswith(WORKERS)]
    return int(said[-1]) if said and re.fullmatch(r"[1-9]\d{0,3}", said[-1]) else 1


def _without_runs(own: Sequence[str]) -> list[str]:
    return [text for text in own if not text.startswith(RUNS)]
