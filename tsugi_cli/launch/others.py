"""The replicas of a run on other machines: nobody starts them, ssh does, or a scheduler has."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import MutableMapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from tsugi_cli.config.compose import to_tree
from tsugi_cli.config.spec import RunSpec
from tsugi_cli.hosts import ssh
from tsugi_cli.hosts.joiners import END_S, Joiner, Joiners
from tsugi_cli.hosts.machines import Machine, machines
from tsugi_cli.hosts.meeting import SECRET, Meeting
from tsugi_cli.hosts.role import role_of
from tsugi_cli.record.run_dir import RunPaths
from tsugi_kpool.errors import ConfigError, ExitCode, LaunchError, TsugiError
from tsugi_kpool.sideband import token
from tsugi_kpool.sideband.keys import Role, RunKeys

from .hub import further_addresses

AT_ONCE = 32
"""Machines that are asked at the same time."""
CHECK_S = 30.0
"""Timeout of the first connection to another machine; ssh itself gives up connecting after 10 s."""
WELL = (ExitCode.OK, ExitCode.STOPPED, ExitCode.OVER, ExitCode.FULL)
"""Exit codes with which a machine's part in a run ends in good order, or somebody else has its place."""
OWN = ("model.path", "lora.from_adapter")
"""Settings that name files: on each machine its user says which are meant, and here the line does. The data come from
the hub."""


@dataclass(frozen=True)
class Lost:
    """A machine takes no part any more."""

    reason: str
    """In one line."""


class Others(Protocol):
    """Replicas on other machines, as the launcher sees them."""

    words: str
    """How they come; empty: by `tsugi join`, for which the user is shown the line."""

    def invite(self, keys: RunKeys) -> None:
        """Bring them to the hub of these keys, which listens."""

    def lost(self) -> list[Lost]:
        """Return those that have gone and were not returned before."""

    def stop(self, at_once: bool) -> None:
        """The run has ended: let them end, too."""


class Nobody:
    """Others come by themselves, with `tsugi join`, or there are none."""

    words = ""

    def invite(self, keys: RunKeys) -> None:
        """Whoever comes has a token."""

    def lost(self) -> list[Lost]:
        """The hub notices."""
        return []

    def stop(self, at_once: bool) -> None:
        """They end when their hub says so."""


class ByScheduler(Nobody):
    """The same line runs on the other machines; they look for our keys."""

    def __init__(self, meeting: Meeting) -> None:
        self._meeting = meeting
        role = meeting.role
        self.words = f"this is the first of {role.world} tasks ({role.scheduler}); the others join it"

    def invite(self, keys: RunKeys) -> None:
        """Leave the keys where the other tasks look for them."""
        self._meeting.publish(keys)

    def stop(self, at_once: bool) -> None:  # noqa: ARG002
        """Take the keys away."""
        self._meeting.withdraw()


class BySsh:
    """Plain ssh runs `tsugi join -` on each machine; its output is in logs/NAME.log of the run."""

    def __init__(self, spec: RunSpec, paths: RunPaths) -> None:
        self._spec = spec
        self._machines = {each.name: each for each in machines(spec.topology.hosts or ())}
        logs = {name: paths.logs / f"{_file_name(each)}.log" for name, each in self._machines.items()}
        self.words = f"started by ssh: {', '.join(self._machines)}; what they write: {paths.logs}/NAME.log"
        self._joiners = Joiners([Joiner(name, argv, logs[name]) for name, argv in commands(spec).items()])

    def invite(self, keys: RunKeys) -> None:
        """Start a join on each. The token goes through ssh's standard input."""
        insecure = not keys.curve
        text = keys.address or ""
        self._joiners.start(
            text if insecure else token.write(keys, Role.MEMBER, True, further_addresses(self._spec, keys))
        )

    def lost(self) -> list[Lost]:
        """Return the machines whose join has ended, or whose connection has."""
        return [
            Lost(ssh.reason_of(each.code, each.words, self._machines[each.joiner.name]))
            for each in self._joiners.ended()
            if each.code not in WELL
        ]

    def stop(self, at_once: bool) -> None:
        """Wait for their adapters; who does not end is told to."""
        self._joiners.stop(0.0 if at_once else END_S)


def _join(spec: RunSpec, where: Machine) -> list[str]:
    own = own_words(spec, f"{spec.runs_dir}/joined/{_file_name(where)}")
    return ssh.words_of_join(where.replicas, own, insecure=spec.sideband.insecure)


def _argv(spec: RunSpec, where: Machine, words: list[str]) -> tuple[str, ...]:
    named = spec.topology.remote_tsugi
    usual = (str(Path(sys.executable).with_name("tsugi")), "tsugi", "~/.local/bin/tsugi")
    script = ssh.script(words, str(Path.cwd()), (named,) if named else usual)
    return ssh.ssh(spec.topology.ssh, where, script)


def commands(spec: RunSpec) -> dict[str, tuple[str, ...]]:
    """Return the command line for each machine of `topology.hosts`."""
    return {each.name: _argv(spec, each, _join(spec, each)) for each in machines(spec.topology.hosts or ())}


def check_machines(spec: RunSpec) -> None:
    """Look for tsugi on each machine of `topology.hosts`, all at once, before anything is started or prepared.

    Raises:
        LaunchError: not all of them can take part; says which, and why.
    """
    wanted = machines(spec.topology.hosts or ())
    if not wanted:
        return
    with ThreadPoolExecutor(max_workers=min(AT_ONCE, len(wanted))) as pool:
        found = [each for each in pool.map(partial(_wrong, spec), wanted) if each is not None]
    if found:
        raise LaunchError("\n".join(["topology.hosts: not every machine can take part", *found]))


def _wrong(spec: RunSpec, where: Machine) -> str | None:
    """Return why nothing can be started on a machine, or None."""
    argv = _argv(spec, where, ["--version"])
    try:
        asked = subprocess.run(
            argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=CHECK_S, check=False
        )
    except subprocess.TimeoutExpired:
        return f"{where.name}: no answer within {CHECK_S:g} s"
    except OSError as error:
        return f"{where.name}: {argv[0]} cannot be run: {error.strerror}"
    return ssh.reason_of(asked.returncode, asked.stderr, where) if asked.returncode else None


def meeting_of(spec: RunSpec, environ: MutableMapping[str, str] = os.environ) -> Meeting | None:
    """Return where the tasks of this job meet; None where no scheduler's machines are asked for.

    Raises:
        ConfigError: the secret in the environment cannot be used.
    """
    role = role_of(environ) if spec.topology.hosts is None else None
    if role is None:
        return None
    if spec.sideband.insecure and SECRET in environ:
        raise ConfigError([f"sideband.insecure=true uses no keys, but {SECRET} is set"])
    return Meeting.of(role, Path(spec.runs_dir), spec.sideband.port, environ)


def others_of(spec: RunSpec, paths: RunPaths, meeting: Meeting | None) -> Others:
    """Return who else takes part in a run that this process launches."""
    if meeting is not None:
        return ByScheduler(meeting)
    return BySsh(spec, paths) if spec.topology.hosts else Nobody()


def own_words(spec: RunSpec, runs_dir: str) -> list[str]:
    """Return what `tsugi join` is to be told where the line that began the run holds there, too."""
    tree = to_tree(spec)
    values = {key: _leaf(tree, key) for key in OWN}
    named = [f"{key}={json.dumps(value)}" for key, value in values.items() if value not in (None, [])]
    return [*named, f"runs_dir={runs_dir}"]


def _leaf(tree: Any, key: str) -> Any:
    for name in key.split("."):
        tree = tree[name]
    return tree


def _file_name(where: Machine) -> str:
    return where.name.replace("@", "_").replace(":", "_")


def lost_while_gathering(lost: list[Lost]) -> TsugiError | None:
    """Return the failure of a launch that lacks machines before the run has begun: it would wait for them in vain."""
    return LaunchError("\n".join(each.reason for each in lost)) if lost else None
