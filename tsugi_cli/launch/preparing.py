"""Preparation of model and data in a process of its own, before any replica starts.

The launcher loads neither: it shows the progress, reports faults, and keeps the facts.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import TextIO

from tsugi_cli.config.compose import config_hash, resolved_yaml
from tsugi_cli.config.spec import RunSpec
from tsugi_cli.console.choose import choose
from tsugi_cli.console.console import Console
from tsugi_cli.console.format import progress_line
from tsugi_cli.data.facts import Facts
from tsugi_cli.finetune.model import check_cache, is_ready, local_folder
from tsugi_cli.finetune.ready import known
from tsugi_cli.record.atomic import write_atomically
from tsugi_cli.record.places import temporary_folder
from tsugi_cli.record.run_dir import RunPaths
from tsugi_cli.signals import Signals
from tsugi_kpool.errors import ConfigError, DataError, ExitCode, MachineError, TsugiError

from .supervisor import complete

TIMEOUT_S = 7 * 24 * 3600.0
"""Timeout of the preparation: data may be large. Downloads have timeouts of their own."""
WORDS_LINES = 8
"""Last lines that are shown of a process that ended without an error of ours."""


class Stopped(Exception):
    """The user wants to stop."""


class Onlooker:
    """Who waits for the preparation: a user with a console, opened when there is something to show, and Ctrl-C; and
    whatever else must go on meanwhile.

    Args:
        out: Where the user looks.
        plain: Lines instead of the live console.
        signals: The user's.
        meanwhile: Called a few times a second while a process prepares.
    """

    def __init__(
        self,
        out: TextIO | None = None,
        plain: bool = True,
        signals: Signals | None = None,
        meanwhile: Callable[[], object] = lambda: None,
    ) -> None:
        self._out, self._plain, self._signals = out, plain, signals
        self.meanwhile = meanwhile
        self._console: Console | None = None

    @property
    def stopped(self) -> bool:
        """Whether the user wants to stop."""
        return self._signals is not None and self._signals.count > 0

    def _opened(self) -> Console | None:
        if self._console is None and self._out is not None:
            self._console = choose(self._out, self._plain)
            self._console.open()
        return self._console

    def message(self, text: str) -> None:
        """Show a line that stays."""
        if (console := self._opened()) is not None:
            console.message(text)

    def progress(self, text: str) -> None:
        """Show the progress; the next text replaces this one."""
        if (console := self._opened()) is not None:
            console.progress(text)

    def __enter__(self) -> Onlooker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._console is not None:
            self._console.progress("")
            self._console.close()


def prepare_model(spec: RunSpec, onlooker: Onlooker) -> None:
    """Prepare the model alone on this machine, unless it is ready.

    Raises:
        MachineError: it cannot be had, or there is no place for it.
        Stopped: the user wants to stop.
    """
    if is_ready(spec.model) and local_folder(spec.model) is not None:
        return
    check_cache(spec.model)
    _announce(spec, onlooker)
    with tempfile.TemporaryDirectory(dir=temporary_folder(), prefix="tsugi-", ignore_cleanup_errors=True) as scratch:
        apart(_written(spec, Path(scratch)), onlooker, ("--model",))


def prepare(spec: RunSpec, onlooker: Onlooker) -> Facts:
    """Prepare model and data on this machine, unless they are ready. Returns the facts of the data.

    Raises:
        DataError: the data cannot be trained on; says why, row by row.
        ConfigError: a function that the user has named cannot be used.
        MachineError: the model cannot be had, or there is no place for it or for the data.
        Stopped: the user wants to stop.
    """
    if is_ready(spec.model) and (found := known(spec)) is not None:
        return found
    check_cache(spec.model)
    _announce(spec, onlooker)
    with tempfile.TemporaryDirectory(dir=temporary_folder(), prefix="tsugi-", ignore_cleanup_errors=True) as scratch:
        paths = _written(spec, Path(scratch))
        apart(paths, onlooker)
        return Facts.parse(paths.prepared.read_bytes())


def _announce(spec: RunSpec, onlooker: Onlooker) -> None:
    if not is_ready(spec.model) and spec.model.source != "tiny":  # that one is made in a moment
        onlooker.message(f"preparing {spec.model.path or spec.model.package} once; it is kept for later runs")


def _written(spec: RunSpec, folder: Path) -> RunPaths:
    paths = RunPaths(folder)
    write_atomically(paths.config, resolved_yaml(spec))
    write_atomically(paths.config_hash, config_hash(spec) + "\n")
    return paths


def apart(paths: RunPaths, onlooker: Onlooker, words: Sequence[str] = ()) -> None:
    """Prepare model and data for the configuration in a folder, in a process of its own.

    Args:
        paths: The folder.
        onlooker: Who waits for it.
        words: Its options, where it is to do something else.

    Raises:
        TsugiError: as that process has ended.
        Stopped: the user wants to stop.
    """
    command = [sys.executable, "-m", "tsugi_cli.finetune.prepare", "--run-dir", str(paths.root)]
    command += words

    def turn() -> bool:
        onlooker.progress(_progress(paths.progress)) if paths.progress.exists() else None
        onlooker.meanwhile()
        return onlooker.stopped

    code, said = complete(command, TIMEOUT_S, turn)
    if code is None:
        raise Stopped
    if code:
        raise error_of(code, said.strip().splitlines())


def error_of(code: int, said: Sequence[str]) -> TsugiError:
    """Return the error that stands for the exit of a process of ours."""
    if code == ExitCode.DATA:
        return DataError("\n".join(said))
    if code == ExitCode.CONFIG:
        return ConfigError(list(said))
    return MachineError(last_words(said) or f"the preparation has ended with code {code}")


def last_words(said: Sequence[str]) -> str:
    """The end of what a process has said: the reason of its failure."""
    return "\n".join(said[-WORDS_LINES:])


def _progress(path: Path) -> str:
    """Return the process's newest progress, in words."""
    try:
        return progress_line(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return ""
