"""One task of a scheduler's job, in which the same line runs on all machines: the first launches, the others join."""

from __future__ import annotations

import os
import sys
from collections.abc import MutableMapping, Sequence

from tsugi_cli.config.compose import compose
from tsugi_cli.config.spec import RunSpec
from tsugi_cli.hosts.role import Role, role_of
from tsugi_cli.record.answer import Answer
from tsugi_kpool.errors import ConfigError

from .consent import Consent
from .invitation import Invitation
from .join import join
from .others import meeting_of, own_words
from .resume import asked, settings_of
from .several import join_several


def follower(overrides: Sequence[str], environ: MutableMapping[str, str] = os.environ) -> RunSpec | None:
    """Return the run of this line if another task of the job launches it; None if this process does.

    Raises:
        ConfigError: the line has mistakes.
    """
    role = _role(environ)
    if role is None or role.leads:
        return None
    source, words = asked(overrides)
    spec = compose(words) if source is None else settings_of(source, words)
    return spec if spec.topology.hosts is None else None


def follow(spec: RunSpec, plain: bool, out: Answer, environ: MutableMapping[str, str] = os.environ) -> int:
    """Join the run that the job's first task launches; returns the exit code.

    Whoever has started the job has written its line: nothing that the run names must be agreed to.

    Raises:
        TsugiError: no launcher is found, or as `join`.
    """
    meeting = meeting_of(spec, environ)
    if meeting is None:
        raise ConfigError(["no scheduler has started this task"])
    role = meeting.role
    out.people.write(f"task {role.rank} of {role.world} ({role.scheduler}): it joins the run of the first\n")
    out.people.flush()
    keys = meeting.await_hub(spec.topology.join_timeout_s)
    invitation = Invitation(keys, (keys.address or "",))
    own, replicas = own_words(spec, f"{spec.runs_dir}/joined/{role.rank}"), spec.topology.here or 1
    if replicas > 1:
        return join_several(invitation, own, replicas, None, out, yes=True)
    return join(invitation, own, plain, out, Consent(True, (), sys.stdin, out.people))


def _role(environ: MutableMapping[str, str]) -> Role | None:
    try:
        return role_of(environ)
    except ConfigError:
        return None  # said where the line asks for a scheduler's machines
