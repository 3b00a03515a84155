"""A benchmark's directory: the only module that knows its file names."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from tsugi_cli.config import documents
from tsugi_cli.config.compose import compose
from tsugi_cli.config.renamed import renewed_tokens
from tsugi_cli.record.atomic import write_atomically, write_json
from tsugi_cli.record.run_dir import BENCH, RunPaths, make_folder, point, unmade
from tsugi_kpool.core.renamed import renewed
from tsugi_kpool.errors import ConfigError
from tsugi_kpool.foreign import read_plain

LATEST = "latest-bench"


@dataclass(frozen=True)
class Folder:
    """All files of one benchmark."""

    root: Path

    @property
    def request(self) -> Path:
        """The request, which `resume` continues."""
        return self.root / BENCH

    @property
    def json(self) -> Path:
        return self.root / "bench.json"

    @property
    def table(self) -> Path:
        return self.root / "bench.md"

    @property
    def page(self) -> Path:
        return self.root / "bench.html"

    @property
    def console(self) -> Path:
        """The lines after the terminal has gone; absent while somebody watches."""
        return self.root / "console.log"

    @property
    def links(self) -> Path:
        """Measurements of the scenario's links."""
        return self.root / "links.json"

    def jobs(self, number: int) -> Path:
        """Return the jobs of one session of the peers' workers."""
        return self.root / "sessions" / f"{number}.json"

    def run(self, key: str) -> Path:
        """Return the folder of one run."""
        return self.root / "runs" / key

    def measured(self, key: str) -> Path:
        """Return the file of a finished run's times and counts; a run that has it is not made again."""
        return self.run(key) / "measured.json"

    def losses(self, key: str) -> Path:
        """Return the file of the eval losses of a finished run's moments."""
        return self.run(key) / "losses.json"

    def paths(self, key: str) -> RunPaths:
        """Return the run's own directory: `tsugi finetune` makes one inside, the peers' workers use the folder
        itself."""
        inside = self.run(key) / "latest"
        return RunPaths(inside.resolve() if inside.exists() else self.run(key))

    def write_request(self, base: list[str], tokens: list[str]) -> None:
        """Save what was typed."""
        write_atomically(self.request, yaml.safe_dump({"base": base, "bench": tokens}, sort_keys=False))

    def read_request(self) -> tuple[list[str], list[str]]:
        """Return (tokens of the runs, tokens of the benchmark).

        Raises:
            ConfigError: this is no benchmark's directory.
        """
        try:
            found = documents.load(read_plain(self.request, documents.MOST_BYTES).decode("utf-8"), str(self.request))
            return _renewed(found["base"]), _renewed(found["bench"])
        except (OSError, KeyError, TypeError, ValueError, ConfigError) as error:
            raise ConfigError([f"resume={self.root}: no benchmark's directory, it has no bench.yaml"]) from error

    def read(self, path: Path) -> Any:
        """Return a JSON file's content, under today's names."""
        return renewed(json.loads(read_plain(path)))

    def write(self, path: Path, value: Any) -> None:
        """Write JSON whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, value)


def _renewed(tokens: list[object]) -> list[str]:
    """Return what was typed, under today's names of the keys."""
    return renewed_tokens([str(token) for token in tokens], lambda others: compose(others).kpool.n)


def make(runs_dir: Path, name: str, now: datetime) -> Folder:
    """Make a benchmark's directory; ``latest-bench`` points at it.

    Raises:
        ConfigError: it cannot be made there.
        MachineError: there is no room.
    """
    try:
        root = make_folder(runs_dir, f"{now:%Y%m%d-%H%M%S}-bench-{name}")
    except OSError as error:
        raise unmade(runs_dir, error) from error
    with suppress(OSError):  # a file system without links
        point(runs_dir / LATEST, root)
    return Folder(root)


def newest(runs_dir: Path) -> Folder:
    """Return the benchmark that `resume=last` means.

    Raises:
        ConfigError: there is none.
    """
    root = runs_dir / LATEST
    if not root.exists():
        raise ConfigError([f"resume=last: there is no benchmark in {runs_dir}"])
    return Folder(root.resolve())
