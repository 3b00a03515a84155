"""Runs of a benchmark as processes: the peers' under torchrun, K-Pool's as `tsugi finetune`, and their evaluation."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from tsugi_cli.compose import compose, config_hash, read_resolved, resolved_yaml
from tsugi_cli.launch import Supervisor
from tsugi_cli.plan import Agent, agent
from tsugi_cli.records import Tail
from tsugi_cli.run_dir import RunPaths, write_atomically
from tsugi_cli.signals import Signals, deaf
from tsugi_kpool.errors import EnvironmentError_, TrainingError

from .display import Display
from .folder import Folder
from .plan import Run

TURN_S = 0.2
END_S = 20.0
"""After a signal a run of `tsugi finetune` may take so long to end."""


class Stopped(Exception):
    """The user wants the benchmark to end; what is finished is kept."""


def run_pool(folder: Folder, run: Run, overrides: Sequence[str], signals: Signals, display: Display) -> None:
    """One run of `tsugi finetune`.

    Raises:
        TrainingError: it failed; with its own words.
        Stopped: the user wants to stop.
    """
    place = folder.run(run.key)
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    words = ["finetune", "--plain", *overrides, f"runs_dir={place}"]
    log = place / "finetune.log"
    with log.open("wb") as output, deaf():
        process = subprocess.Popen(
            [sys.executable, "-m", "tsugi_cli.app", *words],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        while process.poll() is None:
            display.turn()
            _stop_if_asked(signals)
            time.sleep(TURN_S)
    finally:
        _end(process)
    if process.returncode:
        said = "\n".join(log.read_text(errors="replace").strip().splitlines()[-8:])
        raise TrainingError(f"the run {run.key} failed: tsugi {' '.join(words)}\n{said}")
    _collect_pool(folder, run)
    display.done(run)


def run_peers(
    folder: Folder,
    runs: Sequence[Run],
    overrides: Sequence[Sequence[str]],
    sync_every: int,
    signals: Signals,
    display: Display,
) -> None:
    """Runs of peers with the same number of replicas, one after another in the same processes.

    Raises:
        TrainingError: one failed; with its worker's own words.
        Stopped: the user wants to stop.
    """
    jobs = []
    for run, words in zip(runs, overrides, strict=True):
        paths = RunPaths(folder.run(run.key))
        shutil.rmtree(paths.root, ignore_errors=True)
        paths.logs.mkdir(parents=True)
        spec = compose(words)
        write_atomically(paths.config, resolved_yaml(spec))
        write_atomically(paths.config_hash, config_hash(spec) + "\n")
        jobs.append({"folder": str(paths.root), "method": run.arm.method, "sync_every": sync_every})
    number = 1 + sum(1 for _ in folder.root.glob("sessions/*.json"))
    folder.write(folder.jobs(number), jobs)
    paths = RunPaths(folder.root / "sessions" / str(number))
    paths.logs.mkdir(parents=True, exist_ok=True)
    supervisor = Supervisor(
        agents(compose(overrides[0]).topology.replicas, overrides[0], folder, number, paths), paths
    )
    waiting = list(runs)
    try:
        supervisor.start()
        while True:
            running = supervisor.running()
            display.turn()
            _stop_if_asked(signals)
            _refuse_failure(supervisor, waiting)
            while waiting and _complete(folder, waiting[0]):
                _collect_peer(folder, waiting[0])
                display.done(waiting.pop(0))
            if not running:
                break
            time.sleep(TURN_S)
    finally:
        supervisor.stop()


def _refuse_failure(supervisor: Supervisor, waiting: Sequence[Run]) -> None:
    if not (failed := supervisor.failed()):
        return
    supervisor.wait(2.0)  # the one whose fault it was may still be writing down why
    failure = supervisor.failure(failed[0])
    key = waiting[0].key if waiting else "the last run"
    said = "no reason is known" if failure is None else f"{failure.who}: {failure.text}\nlog: {failure.log}"
    raise TrainingError(f"{key} failed: {said}")


def agents(
    replicas: int, overrides: Sequence[str], folder: Folder, number: int, paths: RunPaths
) -> tuple[Agent, ...]:
    """One torchrun agent for each replica, all in one job: that is how these methods are used."""
    spec, port = compose(overrides), free_port()
    found = []
    for replica in range(replicas):
        usual = agent(spec, paths, replica)
        torchrun = [sys.executable, "-m", "torch.distributed.run", f"--nnodes={replicas}", f"--node-rank={replica}"]
        torchrun += ["--nproc-per-node=1", "--max-restarts=0", "--master-addr=127.0.0.1", f"--master-port={port}"]
        worker = ["-m", "tsugi_cli.bench.worker", "--jobs", str(folder.jobs(number))]
        env = {**usual.env, "GLOO_SOCKET_IFNAME": "lo"}
        found.append(replace(usual, argv=(*torchrun, *worker), env=env))
    return tuple(found)


def free_port() -> int:
    """A port that nobody listens at now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def evaluate(folder: Folder, signals: Signals, display: Display) -> None:
    """Eval losses of all finished runs that have none yet.

    Raises:
        EnvironmentError_: the process that evaluates failed.
        Stopped: the user wants to stop.
    """
    log = folder.root / "evaluate.log"
    command = [sys.executable, "-m", "tsugi_cli.bench.evaluate", "--folder", str(folder.root)]
    with log.open("wb") as output, deaf():
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        while process.poll() is None:
            display.turn()
            _stop_if_asked(signals)
            time.sleep(TURN_S)
    finally:
        _end(process)
    if process.returncode:
        said = "\n".join(log.read_text(errors="replace").strip().splitlines()[-8:])
        raise EnvironmentError_(f"the evaluation failed:\n{said}")


def _stop_if_asked(signals: Signals) -> None:
    if signals.count:
        raise Stopped


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process of ours that still runs: ask twice, then insist on its group."""
    for _ in range(2):
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            time.sleep(0.6)
    try:
        process.wait(END_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _complete(folder: Folder, run: Run) -> bool:
    paths = RunPaths(folder.run(run.key))
    return all(paths.track(replica).exists() for replica in range(run.arm.replicas))


def _collect_peer(folder: Folder, run: Run) -> None:
    """Peers say themselves how many tokens stand in what they kept."""
    tracks = _tracks(folder, folder.paths(run.key), run)
    moments = [{"at_s": each["at_s"], "tokens": each["version"]} for each in tracks[0]["moments"]]
    _write(folder, run, tracks, moments)


def _collect_pool(folder: Folder, run: Run) -> None:
    """The hub's events say how many tokens each version of the anchors holds: the mean over the adapters."""
    paths = folder.paths(run.key)
    tracks = _tracks(folder, paths, run)
    tokens, total = {0: 0.0}, 0.0
    for event in Tail(paths.events).read():
        if event.get("event") == "committed":
            total += sum(event["weights"])
            tokens[event["version"]] = total
    adapters = read_resolved(paths).kpool.n
    newest = max(tokens)
    moments = [
        {"at_s": each["at_s"], "tokens": tokens[min(each["version"], newest)] / adapters}
        for each in tracks[0]["moments"]
    ]
    _write(folder, run, tracks, moments)


def _tracks(folder: Folder, paths: RunPaths, run: Run) -> list[dict[str, Any]]:
    return [folder.read(paths.track(replica)) for replica in range(run.arm.replicas)]


def _write(folder: Folder, run: Run, tracks: list[dict[str, Any]], moments: list[dict[str, float]]) -> None:
    """Times count from the moment at which the first replica began."""
    began = min(each["began_unix_s"] for each in tracks)
    later = tracks[0]["began_unix_s"] - began
    value = {
        "wall_s": tracks[0]["ended_unix_s"] - began,
        "sent_bytes": tracks[0]["sent_bytes"],
        "replicas": [{name: each[name] for name in ("micro_steps", "busy_s", "late")} for each in tracks],
        "moments": [{"at_s": each["at_s"] + later, "tokens": each["tokens"]} for each in moments],
    }
    folder.write(folder.measured(run.key), value)


def finished(folder: Folder, run: Run) -> bool:
    """Whether a run need not be made again."""
    return folder.measured(run.key).exists()
