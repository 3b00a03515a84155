"""`tsugi join`: this machine trains one replica of a run that was started elsewhere."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TextIO, TypeVar

from tsugi_cli.config.compose import config_hash, resolved_yaml
from tsugi_cli.config.spec import RunSpec
from tsugi_cli.console.choose import lasting
from tsugi_cli.console.console import Console
from tsugi_cli.record.answer import Answer
from tsugi_cli.record.run_dir import RunPaths, create, write_atomically, write_json
from tsugi_cli.signals import Signals
from tsugi_kpool.about import about
from tsugi_kpool.core.hub import slots
from tsugi_kpool.core.messages import FleetStatus, Slot, SlotRequest, StatusRequest, StopRequest
from tsugi_kpool.errors import ConfigError, ExitCode, LaunchError, SidebandError, TsugiError
from tsugi_kpool.sideband import keys as sideband_keys
from tsugi_kpool.sideband import token as tokens
from tsugi_kpool.sideband.incoming import one_line
from tsugi_kpool.sideband.keys import Role, RunKeys
from tsugi_kpool.sideband.observer import REFUSED, Observer, answering

from .consent import Consent
from .fetching import Fetch, from_hub, prepared
from .guest import check_likeness, check_slot, localised
from .guest_replica import GuestReplica
from .keys import token_text
from .offering import offer
from .plan import agent, import_env
from .preloading import begun
from .preparing import Onlooker, Stopped
from .request import keep
from .supervisor import Supervisor
from .watch import failure_of

T = TypeVar("T")
ANSWER_S = 10.0
"""Timeout of a hub's answer: it does not know us, or is not there."""
PROBE_S = 3.0
"""Timeout of an answer at each of several addresses."""
PAUSE_S = 2.0
"""Pause between two questions of a `--wait`."""
REFUSALS = {slots.ENDED: ExitCode.OVER, slots.TOO_EARLY: ExitCode.TOO_EARLY, slots.NONE_MISSING: ExitCode.FULL}
"""How a hub's refusal begins -> what it is for the shell; hubs of another version may have other words."""
MOST_REASON = 400
"""Characters of what a hub is told when its place is given back."""
GIVEN_BACK_S = 2.0
"""Timeout of giving a place back; after it the hub notices the silence."""


@dataclass(frozen=True)
class Invitation:
    """Where the hub may be, and keys that it accepts."""

    keys: RunKeys
    addresses: tuple[str, ...]
    """Of the hub, as tcp://host:port: the first at which it answers is taken."""

    @staticmethod
    def read(address: str, token: str | None, insecure: bool, ask: TextIO) -> Invitation:
        """Read what the user has typed: an address, or a token that has the address in it.

        Raises:
            ConfigError: address or token are none, or the token is an observer's.
        """
        pasted = tokens.is_token(address)
        if pasted and (insecure or token is not None):
            option = "--insecure" if insecure else "--token"
            raise ConfigError([f"{option}: a token stands in the place of the address"])
        if insecure:
            tokens.check_address(address)
            return Invitation(replace(RunKeys.none(), address=address), (address,))
        text, named = (address, None) if pasted else (token_text(token, ask), address)
        keys, role, found = tokens.read_all(text, named)
        if role is not Role.MEMBER:
            raise ConfigError(["token: this is an observer's, which may only ask for the status"])
        return Invitation(keys, found)

    def settled(self, waits: bool, say: Callable[[str], object]) -> Invitation:
        """Return the same with the one address at which the hub answers; raises as `reached`."""
        keys = self.reached(waits, say)
        return Invitation(keys, (keys.address or "",))

    def reached(self, waits: bool, say: Callable[[str], object]) -> RunKeys:
        """Return the keys with the address at which the hub answers; of a single address it is not tried here.

        Args:
            waits: Try until the hub is there, however long that takes.
            say: Told, once for each reason, why it waits.

        Raises:
            SidebandError: it answers nowhere.
        """
        return patiently(
            lambda: answering(self.keys, self.addresses, PROBE_S), (ExitCode.UNREACHABLE,) if waits else (), say
        )


class Claim:
    """A place in a run: asked for, and given back unless `kept` says that its replica has begun."""

    def __init__(self, hub: Observer, ticket: str) -> None:
        self._hub, self._ticket = hub, ticket
        self.kept = self._given = False

    def ask(self, wait_s: float = ANSWER_S) -> Slot:
        """Return the place of our ticket: the same as before, if the hub has kept it.

        Args:
            wait_s: For a hub that does not answer: it may be started again.

        Raises:
            TsugiError: the hub does not answer, or has none.
        """
        slot = self._hub.ask(SlotRequest(self._ticket, about()), Slot, wait_s)
        self._given = True
        return slot

    def ask_first(self, waits: bool, say: Callable[[str], object]) -> Slot:
        """Return a place for the first time.

        Args:
            waits: Ask until a hub is there and the run has begun, however long that takes.
            say: Told, once for each reason, why it waits.

        Raises:
            TsugiError: the hub does not answer, or has none; its exit code says whether it is too early, the run is
                over, or full.
        """
        return patiently(self.ask, (ExitCode.UNREACHABLE, ExitCode.TOO_EARLY) if waits else (), say)

    def __enter__(self) -> Claim:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.kept or not self._given:
            return
        why = one_line(str(error)) if isinstance(error, TsugiError) else ""  # the hub's user is told, too
        self._hub.send(StopRequest(self._ticket, why[:MOST_REASON]))
        with suppress(TsugiError):  # an answer to what was asked after it: it has been heard
            self._hub.ask(StatusRequest(), FleetStatus, GIVEN_BACK_S)


def patiently(ask: Callable[[], T], waited_for: Sequence[ExitCode], say: Callable[[str], object]) -> T:
    """Return what `ask` returns, however often it fails with one of these exit codes; says once why it waits.

    Raises:
        TsugiError: it fails with another one.
    """
    said = ""
    while True:
        try:
            return ask()
        except (SidebandError, LaunchError) as error:
            error.exit_code = code = exit_code_of(error)
            if code not in waited_for:
                raise
            if said != str(error):
                said = str(error)
                say(f"{said}\nwaiting; Ctrl-C ends it\n")
        time.sleep(PAUSE_S)


def exit_code_of(error: TsugiError) -> ExitCode:
    """Return what a hub's refusal, or its silence, is for the shell."""
    reason = str(error).partition(REFUSED)[2]
    return next((code for words, code in REFUSALS.items() if reason.startswith(words)), error.exit_code)


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
            with Onlooker(out.people, plain, signals) as onlooker:
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
