"""`tsugi join`: this machine trains one replica of a run that was started elsewhere."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TextIO

from tsugi_cli.config.compose import config_hash, resolved_yaml
from tsugi_cli.config.spec import RunSpec
from tsugi_cli.console.choose import lasting
from tsugi_cli.console.console import Console
from tsugi_cli.record.answer import Answer
from tsugi_cli.record.atomic import write_atomically, write_json
from tsugi_cli.record.run_dir import RunPaths, create
from tsugi_cli.signals import Signals
from tsugi_kpool.core.messages import Slot
from tsugi_kpool.errors import ExitCode, LaunchError
from tsugi_kpool.sideband import keys as sideband_keys
from tsugi_kpool.sideband.keys import RunKeys
from tsugi_kpool.sideband.observer import Observer

from .claim import Claim
from .consent import Consent
from .failure import failure_of
from .fetching import Fetch, from_hub, prepared
from .guest import check_likeness, check_slot, localised
from .guest_replica import GuestReplica
from .invitation import Invitation
from .offering import offer
from .plan import agent, import_env
from .preloading import begun
from .preparing import Onlooker, Stopped
from .request import keep
from .supervisor import Supervisor


def join(
    invitation: Invitation,
    overrides: Sequence[str],
    plain: bool,
    out: Answer,
    consent: Consent,
    waits: bool = False,
) -> int:
    """Ask for a place, prepare, train; returns the exit code.

    Nothing from the hub is used before it is checked, and nothing is fetched or run before the user agrees.

    Raises:
        TsugiError: no hub answers, it has no place, this machine lacks something, or the replica failed.
    """
    keys, ticket = invitation.reached(waits, partial(_say, out.people)), uuid.uuid4().hex
    with ExitStack() as opened:
        hub = opened.enter_context(Observer(keys))
        claim = opened.enter_context(Claim(hub, ticket))
        slot = claim.ask_first(waits, partial(_say, out.people))
        check_likeness(slot)
        given = from_hub(slot, overrides)
        spec = localised(slot.config, overrides, given)
        check_slot(slot, ticket, spec)
        consent.settle(spec, keys.address or "", given)
        signals, forks = opened.enter_context(Signals()), opened.enter_context(begun())
        forks.tell(import_env(spec))
        try:
            with Onlooker(out.people, plain, signals, claim.hold) as onlooker:
                facts = prepared(spec, slot, hub, given, onlooker)
                paths = settle(spec, replace(keys, exchange=slot.exchange))
                keep(facts, paths)
                if slot.resumed:
                    Fetch(hub, slot, onlooker, spec.sideband.hub_timeout_s).checkpoint(paths)
        except Stopped:
            return signals.exit_code
        console = opened.enter_context(lasting(out, plain, signals, paths.console))
        console.message(f"{slot.run}, hub at {keys.address}: {paths.root}")
        if signals.count:
            return signals.exit_code
        replica = take(claim.ask(spec.sideband.hub_timeout_s), slot, ticket, spec, paths)
        console.message(f"this is replica {replica}")
        supervisor = Supervisor((agent(spec, paths, replica),), paths, forks)
        member = GuestReplica(hub, ticket, replica, supervisor, console, signals, spec, paths.checkpoints)
        claim.kept = True  # from here on the member gives it back
        supervisor.start()
        try:
            member.watch()
        finally:
            supervisor.stop()
        failure = None if member.gave_up else failure_of(supervisor.failure(replica), None)
        claim.kept = failure is None  # a replica that has failed leaves its place to somebody else at once
        if failure is not None and not signals.count:
            raise failure
        if failure is not None:
            console.message(str(failure))  # its user wanted it to end, however it did
        if member.adapter_wanted and paths.adapter.exists() and not signals.count:
            give(hub, ticket, paths, signals, console)
        return _ended(replica, paths, signals, console)


def _ended(replica: int, paths: RunPaths, signals: Signals, console: Console) -> int:
    """Say how this replica has ended, and return the exit code."""
    early = bool(signals.count) or paths.early.exists()
    console.message(_last_words(replica, paths, early))
    if signals.count:
        return signals.exit_code
    return ExitCode.STOPPED if early else ExitCode.OK


def give(hub: Observer, ticket: str, paths: RunPaths, signals: Signals, console: Console) -> None:
    """Give the hub's machine our adapter, because no replica is there; Ctrl-C ends it."""
    try:
        given = offer(hub, ticket, paths.adapter, lambda: bool(signals.count))
    except OSError as error:
        console.message(f"the adapter could not be read for the hub's machine: {error.strerror or error}")
        return
    if not given:
        console.message("the hub has not taken a copy of the adapter; it is here alone")


def _say(out: TextIO, text: str) -> None:
    out.write(text)
    out.flush()


def _last_words(replica: int, paths: RunPaths, early: bool) -> str:
    """Return one line about how this replica ended."""
    ended = "has ended before the run's data were used up" if early else "has finished"
    kept = f"its adapter: {paths.adapter}" if paths.adapter.exists() else "it leaves no adapter"
    return f"replica {replica} {ended}; {kept}"


def settle(spec: RunSpec, keys: RunKeys) -> RunPaths:
    """Make this machine's own run directory.

    Raises:
        ConfigError: it cannot be made where it is to be.
        MachineError: there is no room.
    """
    paths = create(Path(spec.runs_dir), spec.name, datetime.now())
    write_atomically(paths.config, resolved_yaml(spec))
    write_atomically(paths.config_hash, config_hash(spec) + "\n")
    sideband_keys.save(keys, paths.keys)
    return paths


def take(slot: Slot, before: Slot, ticket: str, spec: RunSpec, paths: RunPaths) -> int:
    """Save which replica this machine is, for its worker, and return the number.

    The place was asked for once more before this call: a hub keeps one for half a minute, and a question or a
    download may take longer. It may be another place by now, but the run must be the one that the user agreed to.

    Raises:
        LaunchError: it is a place in another run.
    """
    if (slot.run, slot.config, slot.exchange) != (before.run, before.config, before.exchange):
        raise LaunchError("the hub has changed the run's configuration while this machine got ready")
    check_slot(slot, ticket, spec)
    given = {"run": slot.run, "replica": slot.replica, "config_hash": slot.config_hash, "seat": slot.seat}
    given |= {"ticket": slot.ticket}
    write_json(paths.slot, given)
    return slot.replica
