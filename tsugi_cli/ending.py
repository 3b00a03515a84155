"""How the `tsugi` command ends: an error in a few lines, its exit code, and output that is nobody's any more."""

from __future__ import annotations

import errno
import os
import re
import sys
from collections.abc import Callable
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

from tsugi_kpool.errors import ConfigError, ExitCode, MachineError, TsugiError

NO_DISK = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO})
"""What a disk says that is full, read-only or gone."""


LONGEST_LINE = 2_000
"""Of an error: what somebody has typed or written may be quoted in it."""


CONFIG_FILE = ("--config", "-c", "--config-file", "--config_file", "--recipe")
GROUPS = ("model", "data", "resume", "seed", "name")
"""Words that other tools write as options. No command of ours has such an option."""


class ReaderGone(Exception):
    """Whoever read our output does not any more; that is theirs to decide."""


def run(command_line: Callable[[], object]) -> None:
    """Run a command line; every expected error is a few lines and an exit code, never a traceback."""
    try:
        from .record.places import close_to_others

        close_to_others()
        refuse_dashes(sys.argv[1:])
        refuse_run_as_word(sys.argv[1:])
        command_line()
    except TsugiError as error:
        _end(error, error.exit_code)
    except (BrokenPipeError, ReaderGone):
        sys.exit(_written(ExitCode.OK))
    except SystemExit as ended:
        sys.exit(_written(ended.code))
    except KeyboardInterrupt as error:
        _end(error, ExitCode.INTERRUPTED)
    except Exception as error:  # noqa: BLE001  (the command line's last line)
        if isinstance(error, OSError) and (reason := _of_the_machine(error)):
            _end(MachineError(reason), ExitCode.ENVIRONMENT)
        _end(error, ExitCode.INTERNAL)


def _of_the_machine(error: OSError) -> str | None:
    """What no code of ours has done: a disk that takes nothing, or a file that belongs to somebody else."""
    where = f" {error.filename}" if error.filename else ""
    if error.errno in NO_DISK:
        return f"could not write{where}: {error.strerror}"
    if isinstance(error, PermissionError) and where:
        return f"this user may not look at{where}: {error.strerror}"
    return None


def _written(code: Any) -> Any:
    """The exit code, once all output is written or is nobody's: Python would end with a code of its own."""
    try:
        sys.stdout.flush()
        return code
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError) or code:
            return code
        _say(f"could not write: {error.strerror}")
        return ExitCode.ENVIRONMENT


def refuse_dashes(arguments: list[str]) -> None:
    """`--kpool.k=2`, `--config mine.yaml` and `--lr 1e-3` are what other tools take; say what ours takes."""
    from .config.names import HUGGING_FACE

    for number, argument in enumerate(arguments):
        if argument == "--":
            return
        if re.match(r"--?[a-z_]+(\.[a-z_]+)+(=|$)", argument):
            raise ConfigError([f"{argument}: settings are written without dashes: {argument.lstrip('-')}"])
        if argument in ("--multirun", "-m"):
            raise ConfigError(
                [f"{argument}: one run at a time; to compare settings: tsugi bench bench.kpool=[default,kpool.k=8]"]
            )
        option, equals, value = argument.partition("=")
        word = option.lstrip("-").replace("-", "_") if option.startswith("-") else ""
        value = value if equals else next(iter(arguments[number + 1 : number + 2]), "VALUE")
        if option in CONFIG_FILE:
            raise ConfigError([f"{option}: a file of settings is a recipe here: recipe={value}"])
        if word in GROUPS:
            raise ConfigError([f"{option}: settings are written without dashes: {word}={value}"])
        if found := {"lr": "train.lr", "epochs": "train.epochs", **HUGGING_FACE}.get(word):
            raise ConfigError([f"{option}: settings are written without dashes; here it is {found}"])


def refuse_run_as_word(arguments: list[str]) -> None:
    """`tsugi eval DIR data=FILE`: `report` and `stop` take a run so, `eval` does not."""
    if arguments[:1] != ["eval"]:
        return
    for before, word in pairwise(arguments):
        if before not in ("--run", "--checkpoint") and (Path(word) / "config.yaml").is_file():
            raise ConfigError([f"{word}: eval measures a file; the run is named by an option: --run {word}"])


def _end(error: BaseException, code: ExitCode) -> None:
    if "--debug" in sys.argv:
        raise error
    if code is ExitCode.INTERNAL:
        _say(f"internal error: {error!r}\nRun again with --debug and report the traceback.")
    else:
        from .console.format import safe  # what it quotes may come from another's file

        _say("\n".join(safe(line)[:LONGEST_LINE] for line in _words(error).split("\n")))
    sys.exit(_written(code))


def _say(text: str) -> None:
    """On stderr, unless that is gone, too: the exit code must not be."""
    with suppress(OSError, ValueError):
        sys.stderr.write(f"tsugi: {text}\n")
        sys.stderr.flush()


def _words(error: BaseException) -> str:
    """One mistake stands in the line; several stand one under the other."""
    if isinstance(error, ConfigError) and len(error.problems) > 1:
        return "\n".join(
            [f"{len(error.problems)} mistakes; nothing was started", *(f"  {p}" for p in error.problems)]
        )
    return str(error) or "interrupted"
