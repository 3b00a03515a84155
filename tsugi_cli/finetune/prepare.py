"""`python -m tsugi_cli.finetune.prepare --run-dir DIR`: get model and data ready before any replica starts.

A process of its own, because the launcher never imports torch and never holds the data. It writes prepared.json, and
while it is at work progress.json.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from tsugi_cli.config.compose import read_resolved
from tsugi_cli.record.atomic import write_json
from tsugi_cli.record.run_dir import RunPaths
from tsugi_kpool.errors import TsugiError
from tsugi_kpool.system import end_with_parent

from .model import load_tokenizer, local_folder, prepare
from .ready import previewed, ready

EVERY_S = 0.2
"""Progress is told this often."""


def main() -> int:
    """Prints what is wrong and returns the error's exit code when model or data cannot be had."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--run-dir", type=Path, required=True)
    parser.add_argument("--preview", type=int, default=0, help="show the samples of so many rows instead")
    parser.add_argument("--model", action="store_true", help="the model alone: the data are there")
    arguments = parser.parse_args()
    end_with_parent()
    paths, rows = RunPaths(arguments.run_dir), arguments.preview
    if arguments.model:
        return exit_code(lambda: prepare_model(paths))
    return exit_code(lambda: preview_run(paths, rows) if rows else prepare_run(paths))


def prepare_run(paths: RunPaths) -> None:
    """Prepare what the configuration in a directory asks for.

    Raises:
        TsugiError: model or data cannot be had.
    """
    ready(read_resolved(paths), Told(paths.progress)).write(paths.prepared)


def prepare_model(paths: RunPaths) -> None:
    """Prepare the model that the configuration in a directory names.

    Raises:
        TsugiError: it cannot be had.
    """
    model = read_resolved(paths).model
    prepare(model)
    if local_folder(model) is None:  # a name on the hub: what is missing there is said before a replica starts
        load_tokenizer(model)


def preview_run(paths: RunPaths, rows: int) -> None:
    """Write down the samples of the first rows.

    Raises:
        TsugiError: model or data cannot be had.
    """
    write_json(paths.preview, previewed(read_resolved(paths), rows))


class Told:
    """Writes down how far the work is."""

    def __init__(self, path: Path) -> None:
        self._path, self._next_s = path, 0.0

    def __call__(self, what: str, done: int, total: int) -> None:
        if time.monotonic() >= self._next_s:
            self._next_s = time.monotonic() + EVERY_S
            with suppress(OSError):
                write_json(self._path, {"what": what, "done": done, "total": total})


def exit_code(act: Callable[[], object]) -> int:
    """Of a process that does this for the launcher: 0, or an error's own, told in one line on stderr."""
    try:
        act()
    except TsugiError as error:
        sys.stderr.write(f"{error}\n")
        return int(error.exit_code)
    return 0


if __name__ == "__main__":
    sys.exit(main())
