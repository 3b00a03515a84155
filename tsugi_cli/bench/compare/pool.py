"""Runs of K-Pool: `tsugi finetune` as users start it, and `tsugi join` where replicas have machines of their own."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tsugi_cli.bench.links.hosts import Here
from tsugi_cli.config.compose import read_resolved
from tsugi_cli.config.spec import RunSpec
from tsugi_cli.record.records import Tail
from tsugi_cli.record.run_dir import RunPaths
from tsugi_cli.signals import Signals
from tsugi_kpool.core.events import Name
from tsugi_kpool.errors import TrainingError
from tsugi_kpool.sideband import keys as sideband_keys
from tsugi_kpool.sideband import token
from tsugi_kpool.sideband.keys import Role

from .display import Display
from .folder import Folder
from .plan import Run
from .runner import end, end_of, start, stop_if_asked, wait, write

SILENT_S = 30.0
"""Timeout of silence, long enough for a replica behind a slow link."""


def run_pool(
    folder: Folder, run: Run, overrides: Sequence[str], machines: Here, signals: Signals, display: Display
) -> None:
    """Make one run.

    Raises:
        TrainingError: it failed; with its own words.
        Stopped: the user wants to stop.
    """
    place = folder.run(run.key)
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    words = ["finetune", "--plain", *overrides, f"runs_dir={place}"]
    if machines.apart:
        here = machines.address(0)
        words += ["topology.here=1", f"topology.address={here}", f"sideband.bind={here}"]
        words += ["topology.trust_network=true"]  # nobody but this benchmark is in its namespaces
        words += [f"topology.silent_timeout_s={SILENT_S:g}"]
    log = place / "finetune.log"
    with ExitStack() as started:
        process = start(machines.inside(0, [sys.executable, "-m", "tsugi_cli.app", *words]), log)
        started.callback(end, process)
        if machines.apart:
            secret, address = _invitation(place, process, signals, display)
            for replica in range(1, run.arm.replicas if address else 0):
                joined = _join(place, replica, address, secret, machines)
                started.callback(end, joined)
        wait(process, signals, display)
    if process.returncode:
        raise TrainingError(f"the run {run.key} failed: tsugi {' '.join(words)}\n{end_of(log)}")
    _collect(folder, run)
    display.done(run)


def _invitation(place: Path, process: subprocess.Popen[bytes], signals: Signals, display: Display) -> tuple[str, str]:
    """Return (token, address) once the hub listens; an empty address when it never will."""
    keys = place / "latest" / "sideband" / "keys.json"
    while not keys.exists() and process.poll() is None:
        display.turn()
        stop_if_asked(signals)
        try:
            process.wait(0.1)
        except subprocess.TimeoutExpired:
            continue
    if not keys.exists():
        return "", ""
    found = sideband_keys.load(keys)
    return token.write(found, Role.MEMBER), found.address or ""


def _join(place: Path, replica: int, address: str, secret: str, machines: Here) -> subprocess.Popen[bytes]:
    folder = place / f"joined{replica}"
    folder.mkdir()
    words = ["join", address, f"topology.address={machines.address(replica)}", f"runs_dir={folder}"]
    words += _files(read_resolved(RunPaths((place / "latest").resolve())))
    command = [sys.executable, "-m", "tsugi_cli.app", *words, "--yes", "--plain", "--token", "-"]
    return start(machines.inside(replica, command), folder / "join.log", f"{secret}\n")


def _files(spec: RunSpec) -> list[str]:
    """Return overrides for files and folders, which a hub cannot name for other machines; here they are the same."""
    named = [f"data.path={json.dumps(spec.data.path)}"] if spec.data.path is not None else []
    return [*named, f"model.path={json.dumps(spec.model.path)}"] if spec.model.source == "hf" else named


def _collect(folder: Folder, run: Run) -> None:
    """Save a run's results. Tokens of each version come from the hub's events: the mean over the adapters."""
    paths = folder.paths(run.key)
    tracks = _tracks(folder, paths, run)
    tokens, total = {0: 0.0}, 0.0
    for event in Tail(paths.events).read():
        if event.get("event") == Name.COMMITTED:
            total += sum(event["weights"])
            tokens[event["version"]] = total
    adapters, newest = read_resolved(paths).kpool.n, max(tokens)
    moments = [
        {"at_s": each["at_s"], "tokens": tokens[min(each["version"], newest)] / adapters}
        for each in tracks[0]["moments"]
    ]
    write(folder, run, tracks, moments)


def _tracks(folder: Folder, paths: RunPaths, run: Run) -> list[dict[str, Any]]:
    """Return what every replica measured; one that has joined wrote it into its own run directory."""
    found = {replica: paths.track(replica) for replica in range(run.arm.replicas)}
    for place in folder.run(run.key).glob("joined*/latest/sideband/place.json"):
        replica = json.loads(place.read_text(encoding="utf-8"))["replica"]
        found[replica] = RunPaths(place.parent.parent).track(replica)
    return [folder.read(found[replica]) for replica in range(run.arm.replicas)]
