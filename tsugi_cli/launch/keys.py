"""`tsugi sideband keygen` and `tsugi sideband token`: make keys, and show what another machine needs."""

from __future__ import annotations

import os
from getpass import getpass
from pathlib import Path
from typing import TextIO

from tsugi_cli.config.compose import read_resolved
from tsugi_cli.config.schema import did_you_mean
from tsugi_cli.record.answer import Answer
from tsugi_cli.record.meant import meant, unheard
from tsugi_kpool.errors import ConfigError, ExitCode, MachineError, SidebandError
from tsugi_kpool.sideband import keys as sideband_keys
from tsugi_kpool.sideband import token
from tsugi_kpool.sideband.keys import Role, RunKeys

from .hub import further_addresses

SHOWN = (Role.MEMBER.value, Role.OBSERVER.value)
TOKEN_FILE = "TSUGI_TOKEN_FILE"
"""Environment variable: a file that holds a token."""


def keygen(path: Path, out: Answer) -> int:
    """Write new keys to a file that nobody else can read, and print the tokens made of them.

    Raises:
        ConfigError: there is such a file; keys are never overwritten.
        MachineError: the file cannot be written.
    """
    if path.exists():
        raise ConfigError([f"{path} is there already; keys are never overwritten"])
    keys = RunKeys.generate()
    try:
        sideband_keys.save(keys, path)
    except OSError as error:
        raise MachineError(f"cannot write {path}: {error.strerror}") from error
    said = f"{path} is mode 0600 and stays on the hub's machine: tsugi finetune sideband.keys={path}"
    found = _tokens(keys)
    out.tell({"file": path, **found}, [said, *_token_lines(found)])
    return ExitCode.OK


def show_tokens(run: Path | None, out: Answer, role: str | None = None) -> int:
    """Print the tokens of a run; of a role its token alone, with the hub's address in it, for a script or a pipe.

    Raises:
        ConfigError: there is no such role's token, or no run.
        SidebandError: the run has no keys that make tokens.
    """
    if role is not None and role not in SHOWN:
        raise ConfigError([f"--role {role}: allowed are {', '.join(SHOWN)}{did_you_mean(role, list(SHOWN))}"])
    paths = meant(run)
    if not paths.keys.exists():
        raise unheard(paths)
    keys = sideband_keys.load(paths.keys)
    if not keys.curve:
        raise SidebandError(f"{paths.root} asks for no keys: tsugi join {keys.address} --insecure")
    if role is not None:
        others = further_addresses(read_resolved(paths), keys) if paths.config.exists() else []
        one = token.write(keys, Role(role), True, others)
        out.tell({role: one}, one)
    else:
        found = _tokens(keys)
        out.tell(found, _token_lines(found))
    return ExitCode.OK


def token_text(given: str | None, ask: TextIO) -> str:
    """Return a token from where the user keeps it. On the command line other users could read it.

    Args:
        given: From the command line; "-" reads a line of `ask`; None reads the file that TSUGI_TOKEN_FILE names, or
            asks a person.
        ask: Standard input.

    Raises:
        ConfigError: the file cannot be read, or there is nobody to ask.
    """
    if given not in (None, "-"):
        return str(given)
    file = os.environ.get(TOKEN_FILE)
    try:
        if given is None and file:
            return Path(file).expanduser().read_text(encoding="utf-8")
        return getpass("token: ") if given is None and ask.isatty() else ask.readline()
    except (OSError, ValueError, EOFError) as error:
        raise ConfigError([f"cannot read the token ({TOKEN_FILE}={file}): {error}"]) from error


def token_for(address: str | None, given: str | None, ask: TextIO) -> str | None:
    """Return a token as `token_text` does, for a command that also works without an address: it asks nobody."""
    in_file = address is not None and given is None and TOKEN_FILE in os.environ
    return token_text(given, ask) if given == "-" or in_file else given


def _tokens(keys: RunKeys) -> dict[str, str]:
    return {role: token.write(keys, Role(role)) for role in SHOWN}


def _token_lines(tokens: dict[str, str]) -> list[str]:
    return [f"{role:<8}  {text}" for role, text in tokens.items()]
