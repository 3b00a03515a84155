"""`tsugi join`: this machine trains one replica of a run that was started elsewhere."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, TextIO

import yaml

from tsugi_kpool.core.messages import Place, PlaceRequest
from tsugi_kpool.errors import ConfigError, ExitCode
from tsugi_kpool.sideband import keys as sideband_keys
from tsugi_kpool.sideband import token as tokens
from tsugi_kpool.sideband.keys import Role, RunKeys
from tsugi_kpool.sideband.observer import Observer

from . import files, rules, schema
from .compose import config_hash, resolved_yaml
from .consoles import lasting
from .finetune.data import load_splits
from .keys import token_text
from .launch import Supervisor
from .member import Member
from .plan import agent
from .run import prepare_model
from .run_dir import RunPaths, create, write_atomically, write_json
from .schema import assemble, did_you_mean
from .signals import Signals
from .spec import RunSpec
from .watch import failure_of

ANSWER_S = 10.0
"""A hub that has not answered by then does not know us, or is not there."""
ASK_S = 1.0
"""The hub is asked for the fleet's status this often."""
LOCAL = ("data.path", "model.path", "topology.address", "topology.threads_per_worker", "runs_dir")
"""What may differ between machines without changing what is trained: the hub compares data and pool."""


@dataclass(frozen=True)
class Invitation:
    """Where the hub is, and the keys that it lets us in with."""

    keys: RunKeys

    @staticmethod
    def read(address: str, token: str | None, insecure: bool, ask: TextIO) -> Invitation:
        """From what the user has typed.

        Raises:
            ConfigError: address or token are none, or the token is an observer's.
        """
        if insecure:
            tokens.check_address(address)
            return Invitation(replace(RunKeys.none(), address=address))
        keys, role = tokens.read(token_text(token, ask), address)
        if role is not Role.MEMBER:
            raise ConfigError(["token: this is an observer's, which may only ask for the status"])
        return Invitation(keys)


def join(invitation: Invitation, overrides: Sequence[str], plain: bool, out: TextIO) -> int:
    """Ask for a place, get ready, train; returns the exit code.

    Raises:
        TsugiError: no hub answers, it has no place, this machine lacks something, or the replica failed.
    """
    keys, ticket = invitation.keys, uuid.uuid4().hex
    with ExitStack() as opened:
        hub, signals = opened.enter_context(Observer(keys)), opened.enter_context(Signals())
        place = hub.ask(PlaceRequest(ticket), Place, ANSWER_S)
        spec = localised(place.config, overrides)
        load_splits(spec.data)  # what cannot be trained on is said now
        paths = settle(spec, place, keys)
        console = opened.enter_context(lasting(out, plain, signals, paths.console))
        console.message(f"replica {place.replica} of {place.run}, hub at {keys.address}: {paths.root}")
        if not prepare_model(spec, paths, console, signals):
            return signals.exit_code
        supervisor = Supervisor((agent(spec, paths, place.replica),), paths)
        member = Member(hub, ticket, place.replica, supervisor, console, signals, spec)
        supervisor.start()
        try:
            member.watch()
        finally:
            supervisor.stop()
        failure = None if member.gave_up else failure_of(supervisor.failure(place.replica), None)
        if failure is not None:
            raise failure
        console.message(f"replica {place.replica} has ended; its adapter: {paths.adapter}")
        return signals.exit_code if signals.count else ExitCode.OK


def localised(config: str, overrides: Sequence[str]) -> RunSpec:
    """The run's configuration with what is this machine's own.

    Raises:
        ConfigError: an override is none of LOCAL, or a file is not here.
    """
    tree = yaml.safe_load(config)
    tree["runs_dir"], tree["topology"]["address"], tree["sideband"]["keys"] = "runs", None, None
    problems = [text for each in overrides if (text := _override(tree, each)) is not None]
    leaves, found = schema.read_tree(tree)
    problems += found + rules.broken(leaves) + files.missing_files(leaves)
    if problems:
        raise ConfigError(problems)
    return assemble(leaves)


def _override(tree: dict[str, Any], text: str) -> str | None:
    """Set one value; what is wrong with it, if something is."""
    key, equals, value = text.partition("=")
    if key not in LOCAL or not equals:
        near = did_you_mean(key, list(LOCAL))
        return f"{text}: the run's settings come from its hub{near}; here can be set: {', '.join(LOCAL)}"
    section, _, name = key.rpartition(".")
    (tree[section] if section else tree)[name] = yaml.safe_load(value)
    return None


def settle(spec: RunSpec, place: Place, keys: RunKeys) -> RunPaths:
    """This machine's own run directory, as the worker expects it.

    Raises:
        ConfigError: it cannot be made where it is to be.
        EnvironmentError_: there is no room.
    """
    paths = create(Path(spec.runs_dir), spec.name, datetime.now())
    write_atomically(paths.config, resolved_yaml(spec))
    write_atomically(paths.config_hash, config_hash(spec) + "\n")
    write_json(paths.place, {"run": place.run, "replica": place.replica, "config_hash": place.config_hash})
    sideband_keys.save(keys, paths.keys)
    return paths
