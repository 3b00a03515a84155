"""`tsugi sideband keygen` and `tsugi sideband token`: keys are made, and what another machine needs is shown."""

from __future__ import annotations

from pathlib import Path
from typing import TextIO

from tsugi_kpool.errors import ConfigError, EnvironmentError_, ExitCode, SidebandError
from tsugi_kpool.sideband import keys as sideband_keys
from tsugi_kpool.sideband import token
from tsugi_kpool.sideband.keys import Role, RunKeys

from .run_dir import find_run


def keygen(path: Path, out: TextIO) -> int:
    """Write new keys to a file that nobody else can read, and print the tokens made of them.

    Raises:
        ConfigError: there is such a file; keys are never overwritten.
        EnvironmentError_: the file cannot be written.
    """
    if path.exists():
        raise ConfigError([f"{path} is there already; keys are never overwritten"])
    keys = RunKeys.generate()
    try:
        sideband_keys.save(keys, path)
    except OSError as error:
        raise EnvironmentError_(f"cannot write {path}: {error.strerror}") from error
    out.write(f"{path} is mode 0600 and stays on the hub's machine: tsugi finetune sideband.keys={path}\n")
    _print_tokens(keys, out)
    return ExitCode.OK


def show_tokens(run: Path | None, out: TextIO) -> int:
    """Print the tokens of a run.

    Raises:
        SidebandError: there is no run, or it has no keys that make tokens.
    """
    paths = find_run(run)
    if paths is None or not paths.keys.exists():
        raise SidebandError("no run with keys found here; name one with --run DIR")
    _print_tokens(sideband_keys.load(paths.keys), out)
    return ExitCode.OK


def _print_tokens(keys: RunKeys, out: TextIO) -> None:
    out.write(f"member    {token.write(keys, Role.MEMBER)}\n")
    out.write(f"observer  {token.write(keys, Role.OBSERVER)}\n")
