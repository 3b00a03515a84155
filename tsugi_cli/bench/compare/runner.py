"""The processes of a benchmark: the peers' workers under torchrun, and the evaluation of finished runs."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tsugi_cli.bench.links.hosts import Here
from tsugi_cli.config.compose import compose, config_hash, resolved_yaml
from tsugi_cli.config.spec import RunSpec
from tsugi_cli.launch.plan import TORCHRUN, Agent, agent
from tsugi_cli.launch.preparing import last_words
from tsugi_cli.launch.supervisor import Supervisor
from tsugi_cli.record.atomic import write_atomically
from tsugi_cli.record.run_dir import RunPaths
from tsugi_cli.signals import Signals, deaf
from tsugi_kpool.errors import MachineError, TrainingError

from .display import Display
from .folder import Folder
from .plan import Run

TURN_S = 0.2
END_S = 20.0
"""Time that a process has to end after a signal."""
ASK_AGAIN_S = 0.6
"""Signals closer to each other than this count as one."""


class Stopped(Exception):
    """The user ends the benchmark; what is finished is kept."""


def run_peers(
    folder: Folder,
    runs: Sequence[Run],
    overrides: Sequence[Sequence[str]],
    sync_every: int,
    machines: Here,
    signals: Signals,
    display: Display,
) -> None:
    """Make runs of peers with the same number of replicas, one after another in the same processes.

    Raises:
        TrainingError: one failed; with its worker's own words.
        Stopped: the user wants to stop.
    """
    jobs = [_job(folder, run, words, sync_every) for run, words in zip(runs, overrides, strict=True)]
    number = 1 + sum(1 for _ in folder.root.glob("sessions/*.json"))
    folder.write(folder.jobs(number), jobs)
    paths = RunPaths(folder.root / "sessions" / str(number))
    paths.logs.mkdir(parents=True, exist_ok=True)
    supervisor = Supervisor(agents(compose(overrides[0]), folder, number, paths, machines), paths)
    waiting = list(runs)
    try:
        supervisor.start()
        while True:
            running = supervisor.running()
            display.turn()
            stop_if_asked(signals)
            _refuse_failure(supervisor, waiting)
            while waiting and _complete(folder, waiting[0]):
                _collect_peer(folder, waiting[0])
                display.done(waiting.pop(0))
            if not running:
                break
            time.sleep(TURN_S)
    finally:
        supervisor.stop()


def _job(folder: Folder, run: Run, words: Sequence[str], sync_every: int) -> dict[str, Any]:
    """Make the folder of one run anew, and return what the workers are told of it."""
    paths = RunPaths(folder.run(run.key))
    shutil.rmtree(paths.root, ignore_errors=True)
    paths.logs.mkdir(parents=True)
    spec = compose(words)
    write_atomically(paths.config, resolved_yaml(spec))
    write_atomically(paths.config_hash, config_hash(spec) + "\n")
    return {"folder": str(paths.root), "method": run.arm.method, "sync_every": sync_every}


def _refuse_failure(supervisor: Supervisor, waiting: Sequence[Run]) -> None:
    if not (failed := supervisor.failed()):
        return
    supervisor.wait(2.0)  # the one whose fault it was may still be writing down why
    failure = supervisor.failure(failed[0])
    key = waiting[0].key if waiting else "the last run"
    said = "no reason is known" if failure is None else f"{failure.who}: {failure.text}\nlog: {failure.log}"
    raise TrainingError(f"{key} failed: {said}")


def agents(spec: RunSpec, folder: Folder, number: int, paths: RunPaths, machines: Here) -> tuple[Agent, ...]:
    """Return one torchrun agent for each replica. Their workers form one group, as these methods are used."""
    replicas, found = spec.topology.replicas, []
    # A folder that only its user can enter, and a file that no session before has written into.
    store = Path(tempfile.mkdtemp(dir=paths.root)) / "store"
    for replica in range(replicas):
        usual = agent(spec, paths, replica)
        torchrun = [*TORCHRUN, "--nproc-per-node=1", "--max-restarts=0"]
        worker = ["-m", "tsugi_cli.bench.compare.worker", "--jobs", str(folder.jobs(number)), "--store", str(store)]
        worker += [f"--rank={replica}", f"--world={replicas}"]
        env = {**usual.env, "GLOO_SOCKET_IFNAME": machines.interface}
        found.append(replace(usual, argv=machines.inside(replica, [*torchrun, *worker]), env=env))
    return tuple(found)


def evaluate(folder: Folder, signals: Signals, display: Display) -> None:
    """Evaluate all finished runs that have no losses yet.

    Raises:
        MachineError: the process that evaluates failed.
        Stopped: the user wants to stop.
    """
    log = folder.root / "evaluate.log"
    command = [sys.executable, "-m", "tsugi_cli.bench.compare.evaluate", "--folder", str(folder.root)]
    process = start(command, log)
    try:
        wait(process, signals, display)
    finally:
        end(process)
    if process.returncode:
        raise MachineError(f"the evaluation failed:\n{end_of(log)}")


def start(command: Sequence[str], log: Path, said: str | None = None) -> subprocess.Popen[bytes]:
    """Start a process in a session of its own; its output goes to a file, `said` is its input."""
    with log.open("wb") as output, deaf():
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL if said is None else subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    if said is not None and process.stdin is not None:
        process.stdin.write(said.encode())
        process.stdin.close()
    return process


def wait(process: subprocess.Popen[bytes], signals: Signals, display: Display) -> None:
    """Wait for the end of a process.

    Raises:
        Stopped: the user wants to stop.
    """
    while process.poll() is None:
        display.turn()
        stop_if_asked(signals)
        time.sleep(TURN_S)


def stop_if_asked(signals: Signals) -> None:
    """Raise Stopped if the user wants to stop. Called between two turns."""
    if signals.count:
        raise Stopped


def end(process: subprocess.Popen[bytes]) -> None:
    """End a running process of ours: ask twice, then kill its group."""
    for _ in range(2):
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            time.sleep(ASK_AGAIN_S)
    try:
        process.wait(END_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def end_of(log: Path) -> str:
    """Return the end of a log."""
    return last_words(log.read_text(errors="replace").strip().splitlines())


def _complete(folder: Folder, run: Run) -> bool:
    paths = RunPaths(folder.run(run.key))
    return all(paths.track(replica).exists() for replica in range(run.arm.replicas))


def _collect_peer(folder: Folder, run: Run) -> None:
    """Save the results of a peer's run. Peers report themselves how many tokens are in what they kept."""
    paths = folder.paths(run.key)
    tracks = [folder.read(paths.track(replica)) for replica in range(run.arm.replicas)]
    moments = [{"at_s": each["at_s"], "tokens": each["version"]} for each in tracks[0]["moments"]]
    write(folder, run, tracks, moments)


def write(folder: Folder, run: Run, tracks: list[dict[str, Any]], moments: list[dict[str, float]]) -> None:
    """Save a run's results. Times count from the moment at which the first replica began."""
    began = min(each["began_unix_s"] for each in tracks)
    later = tracks[0]["began_unix_s"] - began
    value = {
        "wall_s": tracks[0]["ended_unix_s"] - began,
        "sent_bytes": tracks[0]["sent_bytes"],
        "replicas": [{name: each[name] for name in ("steps", "busy_s", "late")} for each in tracks],
        "moments": [{"at_s": each["at_s"] + later, "tokens": each["tokens"]} for each in moments],
    }
    folder.write(folder.measured(run.key), value)


def finished(folder: Folder, run: Run) -> bool:
    """Return whether a run is finished."""
    return folder.measured(run.key).exists()
