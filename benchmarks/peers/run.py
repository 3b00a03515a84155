"""The same workload by others' software, and by ours: time to eval loss, each in a virtual environment of its own.

    python benchmarks/peers/run.py                      all peers, both scenarios, three seeds, five learning rates
    python benchmarks/peers/run.py --peer hivemind tsugi --seeds 0 --dry
    python benchmarks/peers/run.py --list

The learning rate of every peer is tuned for each scenario over the same grid, on the first seed; the other seeds are
run at the rate that it has chosen. Environments are made once, below --home, with the index that pip is set up for.
All peers run at the same time, each with one job after the other, so that they share whatever else this machine does;
a device is emulated by sleep (workload.py). Every run is written as it ends, and is not made again.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]
from harness import RESULTS, save  # noqa: E402
from scores import TARGET, best_scale, summarise  # noqa: E402

TORCH = ("torch>=2.8,<2.14", "transformers>=5", "peft>=0.17", "numpy")
SCENARIOS = ("healthy", "straggler4x")
SCALES = (0.5, 1.0, 2.0, 4.0, 8.0)
"""Of the learning rate: those that `tsugi bench` tries, and one more, since most peers are quickest at 4."""
KEY = ("peer", "scenario", "seed", "lr_scale", "seconds")
Record = dict[str, Any]


@dataclass(frozen=True)
class Peer:
    """Where a peer's training loop is, and what it needs."""

    module: str
    function: str = "train"
    packages: tuple[str, ...] | None = ()
    """Besides TORCH, in an environment of its own; None: this interpreter's, which has this project."""
    needs: str = ""
    """A machine that it runs on, where it does not run on all: the start of platform.system()."""
    python: str = sys.executable
    """What makes its environment."""


PEERS = {
    "no_sync": Peer("no_sync"),
    "torch_ddp": Peer("torch_ddp"),
    "accelerate_local_sgd": Peer("accelerate_local_sgd", packages=("accelerate>=1.10",)),
    "torchft_local_sgd": Peer("torchft_peers", "local_sgd", ("torchft==0.2.0",), "Linux"),
    "torchft_diloco": Peer("torchft_peers", "diloco", ("torchft==0.2.0",), "Linux"),
    "hivemind": Peer("hivemind_local", packages=("hivemind==1.1.12",), needs="Linux"),
    "tsugi_kpool_013": Peer("kpool_013", packages=("tsugi-kpool==0.1.3",)),
    "tsugi_kpool_013_fires": Peer("kpool_013", "fires", ("tsugi-kpool==0.1.3",)),
    "tsugi": Peer("tsugi", packages=None),
}


def why_not(peer: Peer) -> str | None:
    """Why a peer cannot run on this machine, as far as that is known beforehand."""
    if peer.needs and platform.system() != peer.needs:
        return f"its wheels are for {peer.needs} only"
    return None


def interpreter(peer: Peer, home: Path) -> Path:
    """The Python of a peer's environment, which is made if it is not there.

    Raises:
        RuntimeError: pip could not install it; the text ends with what it said.
    """
    if peer.packages is None:
        return Path(sys.executable)
    packages = (*TORCH, *peer.packages)
    name = "-".join(map(bare, peer.packages)) or "plain"
    place, python = home / name, home / name / "bin" / "python"
    installed = place / "installed.json"
    if installed.exists() and json.loads(installed.read_text()) == list(packages):
        return python
    if (maker := shutil.which(peer.python)) is None:
        raise RuntimeError(f"it needs {peer.python}, which is not on this machine")
    subprocess.run([maker, "-m", "venv", "--clear", str(place)], check=True)
    command = [str(python), "-m", "pip", "install", "--quiet", *packages]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise RuntimeError(f"pip install {' '.join(packages)}: {result.stderr.strip()[-600:]}")
    installed.write_text(json.dumps(packages))
    return python


def bare(package: str) -> str:
    """A package's name, of what pip is told."""
    return re.split(r"[\[=<>]", package)[0]


def versions(python: Path, peer: Peer) -> dict[str, str]:
    """What is installed of what was asked for."""
    asked = ("tsugi",) if peer.packages is None else peer.packages
    names = [bare(each) for each in (*TORCH, *asked)]
    code = "import sys, json, importlib.metadata as m; print(json.dumps({n: m.version(n) for n in sys.argv[1:]}))"
    result = subprocess.run([str(python), "-c", code, *names], capture_output=True, text=True, check=True)
    return json.loads(result.stdout)


class Results:
    """The runs so far, kept on disk. Peers' threads add to it."""

    def __init__(self, dry: bool) -> None:
        path = RESULTS / "peers.json"
        known = json.loads(path.read_text()) if path.exists() else {}
        self.runs: list[Record] = known.get("runs", [])
        self.versions: dict[str, dict[str, str]] = known.get("versions", {})
        self.absent: dict[str, str] = {}
        self._dry, self._lock = dry, threading.Lock()

    def has(self, job: Record) -> bool:
        return any(all(run[key] == job[key] for key in KEY) for run in self.runs)

    def add(self, run: Record) -> None:
        with self._lock:
            self.runs.append(run)
            loss = run["curve"][-1][1] if run.get("curve") else run["failure"]
            print(*(run[key] for key in KEY[:4]), run["steps"], loss, flush=True)
            self.write()

    def write(self) -> None:
        if not self._dry:
            order = {name: number for number, name in enumerate(PEERS)}
            self.runs.sort(
                key=lambda run: (SCENARIOS.index(run["scenario"]), order[run["peer"]], run["lr_scale"], run["seed"])
            )
            figures = {"target": TARGET, "summary": summarise(self.runs, PEERS, SCENARIOS), "absent": self.absent}
            save("peers", {**figures, "versions": self.versions, "runs": self.runs})


def tuning(name: str, asked: argparse.Namespace) -> list[Record]:
    """A peer's runs on the first seed: all of the grid, in all scenarios."""
    return [
        _job(name, scenario, asked.seeds[0], scale, asked.seconds)
        for scale in asked.lr_scales
        for scenario in asked.scenario
    ]


def measured(name: str, asked: argparse.Namespace, runs: list[Record]) -> list[Record]:
    """Its runs on the other seeds, at the rates that the first has chosen; nothing where it has chosen none."""
    found = []
    for scenario in asked.scenario:
        mine = [run for run in runs if (run["scenario"], run["peer"]) == (scenario, name)]
        tried = [run for run in mine if run["seed"] == asked.seeds[0] and run["lr_scale"] in asked.lr_scales]
        if (scale := best_scale(tried)) is not None:
            found += [_job(name, scenario, seed, scale, asked.seconds) for seed in asked.seeds[1:]]
    return found


def _job(peer: str, scenario: str, seed: int, scale: float, seconds: float) -> Record:
    return {"peer": peer, "scenario": scenario, "seed": seed, "lr_scale": scale, "seconds": seconds}


def run_peer(name: str, python: Path, base: Path, asked: argparse.Namespace, results: Results) -> None:
    """All jobs of one peer that have not been run, in a process that forks the ranks of each."""
    peer = PEERS[name]
    command = [str(python), str(HERE / "worker.py"), peer.module, peer.function, str(base)]
    quiet = {"PYTHONWARNINGS": "ignore", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "TRANSFORMERS_VERBOSITY": "error"}
    pipe = subprocess.PIPE
    with (base.parent / f"{name}.log").open("ab") as log:
        worker = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=log, text=True, env=os.environ | quiet)
        jobs = [job for job in tuning(name, asked) if not results.has(job)]
        if answered(worker, jobs, results, name):
            jobs = [job for job in measured(name, asked, results.runs) if not results.has(job)]
            answered(worker, jobs, results, name)
        worker.kill()  # its ranks have been ended, each after its job
        worker.wait()


def answered(worker: subprocess.Popen[str], jobs: list[Record], results: Results, name: str) -> bool:
    """Have jobs done; false when the worker has ended."""
    for job in jobs:
        worker.stdin.write(json.dumps(job) + "\n")
        worker.stdin.flush()
        answer = worker.stdout.readline()
        if not answer:
            results.absent[name] = f"its worker ended with exit code {worker.wait()}; see {name}.log"
            return False
        results.add({**json.loads(answer), "peer": name})
    return True


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", nargs="+", choices=list(PEERS), default=list(PEERS))
    parser.add_argument("--scenario", nargs="+", choices=SCENARIOS, default=list(SCENARIOS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--lr-scales", nargs="+", type=float, default=list(SCALES))
    parser.add_argument("--seconds", type=float, default=70.0, help="of training in each run")
    parser.add_argument(
        "--home", type=Path, default=Path("~/.cache/tsugi/peers").expanduser(), help="for environments"
    )
    parser.add_argument("--dry", action="store_true", help="print, write no result file")
    parser.add_argument("--list", action="store_true", help="name the peers, and what cannot run here")
    return parser.parse_args()


def main() -> int:
    arguments = parse()
    if arguments.list:
        for name, peer in PEERS.items():
            packages = " ".join(peer.packages) if peer.packages is not None else "this project"
            print(
                f"{name}: {packages or 'torch alone'}{'; cannot run here: ' + why_not(peer) if why_not(peer) else ''}"
            )
        return 0
    home = arguments.home.resolve()
    home.mkdir(parents=True, exist_ok=True)
    results, pythons = Results(arguments.dry), {}
    for name in arguments.peer:
        try:
            if reason := why_not(PEERS[name]):
                raise RuntimeError(reason)
            pythons[name] = interpreter(PEERS[name], home)
            results.versions[name] = versions(pythons[name], PEERS[name])
        except (RuntimeError, subprocess.CalledProcessError) as error:
            results.absent[name] = str(error)
            print(f"{name} cannot run here: {error}", flush=True)
    if not pythons:
        return 1
    base = home / "base"
    subprocess.run([str(next(iter(pythons.values()))), str(HERE / "workload.py"), str(base)], check=True)
    threads = [
        threading.Thread(target=run_peer, args=(name, python, base, arguments, results))
        for name, python in pythons.items()
    ]
    for thread in threads:
        thread.start()
        time.sleep(0.5)
    for thread in threads:
        thread.join()
    results.write()
    for row in summarise(results.runs, PEERS, SCENARIOS):
        print(row)
    return 0


if __name__ == "__main__":
    sys.exit(main())
