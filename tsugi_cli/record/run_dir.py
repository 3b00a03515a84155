"""The run directory: the only module that knows its file names; how one is made, and which one a user means."""

from __future__ import annotations

import errno
import json
import os
import re
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from tsugi_kpool.errors import ConfigError, MachineError, TsugiError
from tsugi_kpool.foreign import read_plain

from .atomic import write_atomically
from .places import cache_folder, temporary_folder

BENCH, BENCH_DEPTH = "bench.yaml", 4
"""The request of a benchmark, and how far below its folder runs lie."""


@dataclass(frozen=True)
class RunPaths:
    """All files of one run."""

    root: Path

    @property
    def config(self) -> Path:
        return self.root / "config.yaml"

    @property
    def config_hash(self) -> Path:
        return self.root / "config.sha256"

    @property
    def keys(self) -> Path:
        return self.root / "sideband" / "keys.json"

    @property
    def journal(self) -> Path:
        """The hub's write-ahead log."""
        return self.root / "sideband" / "hub.journal"

    @property
    def exchange(self) -> Path:
        """Where the run's exchange keeps its rounds; absent where replicas send to each other."""
        return self.root / "exchange"

    @property
    def lock(self) -> Path:
        """The lock of the launcher or hub that runs this run."""
        return self.root / "sideband" / "run.lock"

    @property
    def slot(self) -> Path:
        """This machine's place in a run that was launched elsewhere; absent in the launcher's own directory."""
        return self.root / "sideband" / "place.json"

    @property
    def early(self) -> Path:
        """Mark on a machine that joined: the run, or its own part in it, ended before the data were used up."""
        return self.root / "sideband" / "ended-early"

    def seat(self) -> str:
        """Return the proof of this machine's place; empty in the launcher's own directory."""
        if not self.slot.exists():
            return ""
        return str(json.loads(read_plain(self.slot)).get("seat", ""))

    def ticket(self) -> str:
        """Return the ticket that this machine's place was given to; empty in the launcher's own directory."""
        if not self.slot.exists():
            return ""
        return str(json.loads(read_plain(self.slot)).get("ticket", ""))

    def fleet_hash(self) -> str:
        """Return the configuration's hash as the hub knows it. That of config.yaml differs by this machine's own
        settings."""
        if self.slot.exists():
            return str(json.loads(read_plain(self.slot))["config_hash"])
        return read_plain(self.config_hash).decode().strip()

    @property
    def prepared(self) -> Path:
        """Where this machine keeps the run's prepared data, and facts about them."""
        return self.root / "prepared.json"

    @property
    def progress(self) -> Path:
        """Progress of the preparation, while it lasts."""
        return self.root / "progress.json"

    @property
    def preview(self) -> Path:
        """The first samples, for `tsugi data preview`."""
        return self.root / "preview.json"

    @property
    def data_report(self) -> Path:
        """What became of the user's rows."""
        return self.root / "data.report.json"

    @property
    def metrics(self) -> Path:
        return self.root / "metrics.jsonl"

    @property
    def events(self) -> Path:
        return self.root / "events.jsonl"

    @property
    def status(self) -> Path:
        return self.root / "status.jsonl"

    @property
    def summary(self) -> Path:
        return self.root / "summary.json"

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"

    @property
    def resumed(self) -> Path:
        """The checkpoint that the run resumes; absent in a run from the start."""
        return self.root / "resumed.json"

    @property
    def snapshots(self) -> Path:
        """The adapters at some moments of the run; absent unless evaluate.snapshots asks for them."""
        return self.root / "curve" / "snapshots.safetensors"

    def track(self, replica: int) -> Path:
        """Return the file with a replica's measurements of its own training, where evaluate.snapshots asks for it."""
        return self.root / "curve" / f"replica{replica}.json"

    @property
    def lora_start(self) -> Path:
        """What the LoRA began with; absent unless lora.init takes that out of the base weights."""
        return self.root / "lora_start.safetensors"

    @property
    def adapter(self) -> Path:
        return self.root / "adapter"

    @property
    def card(self) -> Path:
        """The adapter's model card."""
        return self.adapter / "README.md"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def console(self) -> Path:
        """The console's lines after its terminal has gone; absent while somebody watches."""
        return self.logs / "console.log"

    def log(self, replica: int, worker: int = 0) -> Path:
        """Return the log of a worker. Worker 0 shares it with the replica's torchrun agent."""
        return self.logs / f"replica{replica}.worker{worker}.log"

    def error(self, replica: int) -> Path:
        """Return the file in which torchrun leaves the first failure of a replica."""
        return self.logs / f"replica{replica}.error.json"


def create(runs_dir: Path, name: str, now: datetime) -> RunPaths:
    """Make a new run directory ``<runs_dir>/<time>-<name>`` and point ``latest`` at it.

    Raises:
        ConfigError: it cannot be made there.
        MachineError: there is no room, or none for temporary files, which a run's processes need.
    """
    temporary_folder()
    stem = f"{now:%Y%m%d-%H%M%S}-{re.sub(r'[^A-Za-z0-9._-]+', '_', name)}"
    try:
        paths = RunPaths(make_folder(runs_dir, stem))
        paths.logs.mkdir()
        paths.keys.parent.mkdir(mode=0o700)
    except OSError as error:
        raise unmade(runs_dir, error) from error
    with suppress(
        OSError, RuntimeError, MachineError
    ):  # a home that is missing or read-only, a file system without links
        point_latest(runs_dir, paths.root)
    return paths


def unmade(runs_dir: Path, error: OSError) -> TsugiError:
    """Return why a run directory cannot be made, and what helps."""
    text = f"cannot make a directory in {runs_dir.absolute()}: {error.strerror}"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return MachineError(text)
    return ConfigError([f"runs_dir: {text}; runs_dir=FOLDER puts it elsewhere"])


def make_folder(runs_dir: Path, stem: str) -> Path:
    """Make a new directory with this name, or with a number after it if it exists. Returns its absolute path.

    Raises:
        OSError: the place cannot be written to.
    """
    root, attempt = runs_dir / stem, 1
    while True:
        try:
            root.mkdir(parents=True)
        except FileExistsError:
            if not root.exists():
                raise  # what is in the way is above it
            attempt += 1
            root = runs_dir / f"{stem}-{attempt}"
        else:
            return root.resolve()


def point(link: Path, root: Path) -> None:
    """Point a link to a directory beside it, in one step."""
    scratch = link.with_name(f".{link.name}-{os.getpid()}")
    scratch.unlink(missing_ok=True)
    scratch.symlink_to(root.name)
    scratch.replace(link)


def point_latest(runs_dir: Path, root: Path) -> None:
    """Repoint ``<runs_dir>/latest`` in one step, and remember the run for other terminals of this user."""
    point(runs_dir / "latest", root)
    if any((above / BENCH).exists() for above in root.parents[:BENCH_DEPTH]):
        return  # one of a benchmark's many runs is nobody's newest
    pointer = _pointer()
    pointer.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(pointer, str(root))


def find_run(given: Path | None) -> RunPaths | None:
    """Return the run that a user means: the given directory, else ./runs/latest, else this user's newest run."""
    if given is not None:
        return RunPaths(given.resolve())
    local = Path("runs") / "latest"
    if local.exists():
        return RunPaths(local.resolve())
    try:
        remembered = Path(_pointer().read_text(encoding="utf-8"))
    except (OSError, MachineError):
        return None
    return RunPaths(remembered) if remembered.is_dir() else None


def _pointer() -> Path:
    return cache_folder() / "latest-run"
