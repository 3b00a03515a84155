"""The newest peers on four machines of which one is slow, and on slow links, each set as its documentation advises.

    python benchmarks/peers/newest.py                    all peers, three scenarios, three seeds
    python benchmarks/peers/newest.py --peer tsugi hivemind --seeds 0 --dry
    python benchmarks/peers/newest.py --list

Four replicas of the workload of run.py, with a LoRA of rank 64, so that the adapter is more than what peers tell
each other besides. On slow links every rank is in a network namespace of its own behind a shaped cable (1 Mbit/s; as
root). Each learning rate is tuned over a grid with a straggler, on the first seed, and kept for all scenarios. A few
peers run at the same time, others in each turn, so that all share whatever else this machine does.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]
from harness import RESULTS, add, made, runs  # noqa: E402
from run import Peer, interpreter, versions, why_not  # noqa: E402
from scores import best_scale  # noqa: E402

from tsugi_cli.bench.links.hosts import Cables  # noqa: E402
from tsugi_cli.bench.links.namespaces import Namespaces  # noqa: E402
from tsugi_cli.bench.spec import Scenario  # noqa: E402

REPLICAS, LORA_RANK, EVERY_S = 4, 64, 1.5
SCENARIOS = ("healthy", "straggler4x", "slow_link")
SCALES = (1.0, 2.0, 4.0)
TARGET = 2.0
"""Eval loss that is raced for. The base model begins at 5.4."""
TORCHFT, HIVEMIND = ("torchft-nightly==2026.10.26",), ("hivemind==1.1.12",)
MAIL = ("gradientmail[s3]==0.0.2", "moto[server,s3]>=5")
PEERS = {
    "no_sync": Peer("no_sync"),
    "torch_ddp": Peer("torch_ddp"),
    "torchft_local_sgd_own": Peer("torchft_peers", "local_sgd_own", TORCHFT, "Linux"),
    "torchft_diloco_own": Peer("torchft_peers", "diloco_own", TORCHFT, "Linux"),
    "hivemind": Peer("hivemind_local", "sooner", HIVEMIND, "Linux"),
    "gradientmail": Peer("gradientmail_diloco", "train", MAIL, python="python3.12"),
    "gradientmail_carry": Peer("gradientmail_diloco", "carry", MAIL, python="python3.12"),
    "onepool": Peer("onepool_rounds", packages=("onepool[train]==0.6.1",)),
    "tsugi": Peer("tsugi", packages=None),
    "tsugi_fleet": Peer("tsugi", "fleet", packages=None),
}
LINK = Scenario(
    about="", emulate=True, slow=1.0, jitter=0.0, link="each", mbit_s=1.0, delay_ms=0.0, delay_jitter_ms=0.0, loss=0.0
)
Record = dict[str, Any]


class Worker:
    """A peer's process: jobs in, results out."""

    def __init__(self, name: str, python: Path, base: Path) -> None:
        peer, pipe = PEERS[name], subprocess.PIPE
        command = [str(python), str(HERE / "worker.py"), peer.module, peer.function, str(base)]
        quiet = {"PYTHONWARNINGS": "ignore", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "TRANSFORMERS_VERBOSITY": "error"}
        with (base.parent / f"{name}.log").open("ab") as log:
            self._process = subprocess.Popen(
                command, stdin=pipe, stdout=pipe, stderr=log, text=True, env=os.environ | quiet
            )

    def done(self, job: Record) -> Record:
        """The result of a job.

        Raises:
            RuntimeError: the process has ended.
        """
        into, out = self._process.stdin, self._process.stdout
        into.write(json.dumps(job) + "\n")
        into.flush()
        answer = out.readline()
        if not answer:
            raise RuntimeError(f"its worker ended with exit code {self._process.wait()}")
        found: Record = json.loads(answer)
        return found

    def end(self) -> None:
        self._process.kill()  # its ranks have been ended, each after its job
        self._process.wait()


def laid(stack: ExitStack) -> list[int]:
    """Machines behind slow links, and one behind a fast one: a process in each.

    Raises:
        NoNamespace: this user may not make them.
    """
    namespaces = stack.enter_context(Namespaces())
    cables = Cables(LINK, REPLICAS + 1, namespaces)
    stack.callback(cables.tear)
    cables.lay()
    for name, device in ((str(REPLICAS), cables.interface), ("switch", f"port{REPLICAS}")):
        namespaces.run(name, "tc", "qdisc", "del", "dev", device, "root")
    return [int(namespaces.process(str(number))) for number in range(REPLICAS + 1)]


def turns(names: Sequence[str], at_once: int, turn: int) -> Iterator[tuple[str, ...]]:
    """All peers, a few at a time; others together in every turn."""
    first = turn * (at_once + 1) % len(names)
    order = (*names[first:], *names[:first])
    yield from (order[start : start + at_once] for start in range(0, len(order), at_once))


def job(name: str, scenario: str, seed: int, scale: float, seconds: float) -> Record:
    shape = {"replicas": REPLICAS, "lora_rank": LORA_RANK, "every_s": EVERY_S, "seconds": seconds}
    return {"peer": name, "scenario": scenario, "seed": seed, "lr_scale": scale, **shape}


class Session:
    """All of one call: workers, machines, and where results go."""

    def __init__(self, asked: argparse.Namespace, workers: dict[str, Worker], machines: list[list[int]]) -> None:
        self._asked, self._workers, self._machines = asked, workers, machines
        self.facts: Record = {}
        self._turn = 0

    def perform(self, scenario: str, seed: int, rates: dict[str, list[float]]) -> None:
        """One scenario and seed by all peers, each at its rates."""
        for number in range(max(map(len, rates.values()))):
            names = [name for name, found in rates.items() if number < len(found)]
            self._turn += 1
            for together in turns(names, self._asked.at_once, self._turn):
                with ThreadPoolExecutor(self._asked.at_once) as pool:
                    jobs = [job(name, scenario, seed, rates[name][number], self._asked.seconds) for name in together]
                    list(pool.map(self._one, jobs, self._machines))

    def _one(self, asked: Record, machines: list[int]) -> None:
        if not self._asked.dry and made("peers_newest", **asked):
            return
        there = machines if asked["scenario"] == "slow_link" else []
        found = self._workers[asked["peer"]].done({**asked, "machines": there})
        found = {key: value for key, value in found.items() if key != "machines"} | {"load": os.getloadavg()[0]}
        loss = found["curve"][-1][1] if found.get("curve") else found["failure"]
        print(*(asked[key] for key in ("scenario", "seed", "peer", "lr_scale")), found["steps"], loss, flush=True)
        if not self._asked.dry:
            add("peers_newest", found, **self.facts)


def tuned(name: str, asked: argparse.Namespace) -> list[float]:
    """The learning rate that a peer's runs with a straggler have chosen, if any has been made."""
    mine = [run for run in runs("peers_newest") if (run["peer"], run["scenario"]) == (name, "straggler4x")]
    chosen = best_scale([run for run in mine if run["seed"] == asked.seeds[0]], TARGET)
    return [] if chosen is None else [chosen]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", nargs="+", choices=list(PEERS), default=list(PEERS))
    parser.add_argument("--scenario", nargs="+", choices=SCENARIOS, default=list(SCENARIOS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--lr-scales", nargs="+", type=float, default=list(SCALES))
    parser.add_argument("--seconds", type=float, default=45.0, help="of training in each run")
    parser.add_argument("--at-once", type=int, default=3, help="peers that run at the same time")
    parser.add_argument(
        "--home", type=Path, default=Path("~/.cache/tsugi/peers").expanduser(), help="for environments"
    )
    parser.add_argument("--dry", action="store_true", help="print, write no result file; the first of --lr-scales")
    parser.add_argument("--list", action="store_true", help="name the peers, and what cannot run here")
    return parser.parse_args()


def environments(asked: argparse.Namespace) -> tuple[dict[str, Path], dict[str, Any], dict[str, str]]:
    """Each peer's interpreter, what is installed of it, and why some cannot run."""
    pythons, installed, absent = {}, {}, {}
    for name in asked.peer:
        try:
            if reason := why_not(PEERS[name]):
                raise RuntimeError(reason)
            pythons[name] = interpreter(PEERS[name], asked.home)
            installed[name] = versions(pythons[name], PEERS[name])
        except (RuntimeError, subprocess.CalledProcessError) as error:
            absent[name] = str(error)
            print(f"{name} cannot run here: {error}", flush=True)
    return pythons, installed, absent


def known_versions() -> dict[str, Any]:
    """What was installed of each peer that earlier calls have run."""
    path = RESULTS / "peers_newest.json"
    return dict(json.loads(path.read_text())["versions"]) if path.exists() else {}


def main() -> int:
    asked = parse()
    if asked.list:
        for name, peer in PEERS.items():
            print(f"{name}: {' '.join(peer.packages or ()) or 'torch or this project'}; {why_not(peer) or 'can run'}")
        return 0
    asked.home = asked.home.resolve()
    asked.home.mkdir(parents=True, exist_ok=True)
    pythons, installed, absent = environments(asked)
    base = asked.home / "base"
    one = {"OMP_NUM_THREADS": "1"}  # two threads that spin for each other take minutes on a busy machine
    subprocess.run([sys.executable, str(HERE / "workload.py"), str(base)], check=True, env=os.environ | one)
    with ExitStack() as stack:
        machines = [laid(stack) if "slow_link" in asked.scenario else [] for _ in range(asked.at_once)]
        workers = {name: Worker(name, python, base) for name, python in pythons.items()}
        for worker in workers.values():
            stack.callback(worker.end)
        session = Session(asked, workers, machines)
        installed = known_versions() | installed
        session.facts = {"target": TARGET, "versions": installed, "absent": absent, "link_mbit_s": LINK.mbit_s}
        first = dict.fromkeys(workers, asked.lr_scales[:1] if asked.dry else asked.lr_scales)
        if "straggler4x" in asked.scenario:
            session.perform("straggler4x", asked.seeds[0], first)
        for seed in asked.seeds:
            for scenario in asked.scenario:
                session.perform(
                    scenario, seed, first if asked.dry else {name: tuned(name, asked) for name in workers}
                )
    return 0


if __name__ == "__main__":
    sys.exit(main())
