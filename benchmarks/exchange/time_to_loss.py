"""Time to loss behind slow links: a group against an exchange whose hub's link is as slow as everybody's.

    python benchmarks/exchange/time_to_loss.py --replicas 4 8 --seeds 91 92 93 94 95

`links.py` measures rounds. This trains through them: real gradients of the stand-in, the real hub, the exchange's own
arithmetic, in virtual time (../engine/virtual.py), so that the load of the machine changes no figure. A payload
takes as long as 1.2 MB at 20 Mbit/s whatever the stand-in's adapter has, and 20 ms each way; the link's rates are
those at which the model's rounds take what links.py measures (`--calibrate` shows both). Every arm of a seed trains
on the same data at the same learning rate; times are to the loss at which DDP stands after half of its samples, and
are compared within a seed.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "engine"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "straggler_tax"))
import clocks
import torch
from harness import add, made, runs, save
from lab import Lab
from run import LEARNING_RATES, QUIET, laboratory
from scenarios import Scenario
from steps import one_step, trained
from training import Course
from verdicts import rate_of, rates_for
from virtual import TensorFleet

from tsugi_cli.config.compose import compose
from tsugi_cli.config.spec import RunSpec
from tsugi_cli.finetune.model import quieten
from tsugi_kpool.codec.coding import coded_bytes
from tsugi_kpool.codec.header import header_bytes
from tsugi_kpool.core.messages import Fire
from tsugi_kpool.core.rounds.closing import Quorum
from tsugi_kpool.core.settings import Payload
from tsugi_kpool.sim.collective import outcome_of
from tsugi_kpool.sim.exchange import Shared, SimulatedExchange
from tsugi_kpool.sim.kernel import Kernel
from tsugi_kpool.sim.replica import Contribution, Replica, SimulatedResult
from tsugi_kpool.sim.scenario import LinkModel, Slow, Speeds

MODEL = "pretrained"
PAYLOAD_S = 1_199_640 * 8 / 20e6
"""What a payload of links.py takes at 20 Mbit/s: 0.48 s."""
LATENCY_S = 0.02
FRAMES = 1.05
"""Of a payload's time with what TCP and IP put around it: then rounds of a group take what links.py measures."""
BOTH_WAYS = 1.16
"""Of that, on the hub's link, which carries parts and results at the same time: what comes in slows what goes out,
and each connection begins slowly. Rounds of an exchange that follow each other take what links.py measures then."""
LONG_S = 1e6


@dataclass(frozen=True)
class Arm:
    """A data plane, and where its hub is."""

    settings: tuple[str, ...]
    hub_trains: bool = False
    """The hub's machine is the first replica's, too: one payload less each way on its link."""


GATHER, EXCHANGE = "kpool.reduce=gather", "topology.data_plane=exchange"
INT4, ONE = "kpool.payload=int4", "kpool.k=1"
ARMS = {
    "group, gather": Arm((GATHER,)),
    "group, auto": Arm(()),
    "exchange": Arm((EXCHANGE,)),
    "exchange, hub trains": Arm((EXCHANGE,), True),
    "exchange, k=1, hub trains": Arm((EXCHANGE, ONE), True),
    "exchange, int4, hub trains": Arm((EXCHANGE, INT4), True),
    "exchange, int4, k=1, hub trains": Arm((EXCHANGE, INT4, ONE), True),
    "group, gather, int4, k=1": Arm((GATHER, INT4, ONE)),
    "exchange, int4, k=1": Arm((EXCHANGE, INT4, ONE)),
    "group, gather, int4": Arm((GATHER, INT4)),
    "exchange, int4": Arm((EXCHANGE, INT4)),
}
"""Two of eight adapters in int8 where nothing else is said."""
USUAL_K = 2
"""Of the payload that takes `PAYLOAD_S`."""
CELLS = (("even", 0.5), ("even", 1.0), ("even", 2.0), ("straggler", 1.0))
"""A fleet, and the seconds of its steps."""
SLOWER = {"even": 1.0, "straggler": 4.0}
"""How many times as long the last replica's steps take."""


def link(packed: int, adapters: int, hub_trains: bool) -> LinkModel:
    """Everybody's link, on which so many bytes of int8 take `PAYLOAD_S`.

    Args:
        packed: Bytes of a part of int8.
        adapters: In it.
        hub_trains: Whether the first replica is on the hub's machine.
    """
    rate = packed / PAYLOAD_S / FRAMES
    return LinkModel(
        latency_s=LATENCY_S,
        bandwidth_bytes_per_s=rate,
        adapter_bytes=packed // adapters,
        hub_bytes_per_s=rate / BOTH_WAYS,
        on_hub=(0,) if hub_trains else (),
    )


def coded(k: int, size: int, payload: Payload) -> int:
    """Bytes of a part."""
    return header_bytes(k) + coded_bytes(k * size, payload)


def fleet_of(spec: RunSpec, lab: Lab, arm: Arm, step_s: float, slow: float, every: int) -> TensorFleet:
    replicas, kpool = spec.topology.replicas, spec.kpool
    size = sum(p.numel() for p in trained(lab.model)) // kpool.n
    ways = link(coded(USUAL_K, size, Payload.INT8), USUAL_K, arm.hub_trains)
    ways = replace(ways, adapter_bytes=coded(kpool.k, size, kpool.payload) // kpool.k)
    slower = (Slow(replicas - 1, slow),) if slow != 1.0 else ()
    return TensorFleet(spec, lab, Speeds((step_s,), jitter=0.03, slow=slower), ways, every)


def measured(spec: RunSpec, lab: Lab, arm: Arm, step_s: float, slow: float, every: int) -> dict[str, Any]:
    """One run: its curve of eval loss over time, and its rounds."""
    fleet = fleet_of(spec, lab, arm, step_s, slow, every)
    report = fleet.run(LONG_S)
    if report.failure or fleet.differences:
        raise SystemExit(f"{report.failure} {fleet.differences[:3]}")
    return {
        "curve": [[round(point.time_s, 3), point.samples, round(point.loss, 5)] for point in fleet.curve],
        "rounds": report.versions,
        "round_s": round(fleet.curve[-1].time_s / report.versions, 3),
        "goodput": round(report.goodput, 4),
    }


def ddp(spec: RunSpec, lab: Lab, every: int) -> list[list[float]]:
    """DDP's curve by samples; its clock is nobody's here."""
    rounds = clocks.ddp(Scenario(0.1, jitter=0.0), spec.topology.replicas, spec.seed, lab.batches.total)
    losses = Course(spec, lab, every).losses(one_step, rounds)
    return [[float(done), done, round(loss, 5)] for done, loss in sorted(losses.items())]


def calibration(replicas: int) -> dict[str, Any]:
    """Seconds of a round that links.py has measured, and of the model's, whose replicas keep their links full."""
    found: dict[str, Any] = {"replicas": replicas}
    for name, hub_trains in (("exchange_links", False), ("exchange_links_hub_trains", True)):
        for run in (each for each in runs(name) if each["replicas"] == replicas):
            ways = ("exchange, ahead",) if hub_trains else ("group", "exchange, ahead")
            for way in ways:
                label = f"{way}, hub trains" if hub_trains else way
                found[label] = {"measured_s": run["s"][way], "model_s": modelled(replicas, way, hub_trains)}
    return found


def modelled(replicas: int, way: str, hub_trains: bool) -> float:
    """Seconds of a round in the model; of an exchange's those from one to the next, where each member goes on when it
    has its result, as links.py does it: without a hub."""
    kpool = compose([*QUIET, GATHER]).kpool
    ways = link(1_000_000, kpool.k, hub_trains)
    if way == "group":
        return round(ways.reduce_s(kpool, replicas, 1_000_000), 2)
    kernel, members, ended_s = Kernel(), tuple(range(replicas)), list[float]()
    fleet = [Replica(number, kpool.n, False, random.Random(0)) for number in members]

    def go_on(replica: Replica, shared: Shared | None = None, joined_s: float = 0.0) -> None:
        del joined_s
        number = 1 if shared is None else shared.fire.round + 1
        if replica is fleet[-1]:
            ended_s.append(kernel.now_s)
        fire = Fire(1, number, tuple(range(kpool.k)), members, "", number - 1)
        exchange.give(replica, fire, replica.contribute(fire))

    def reduce(fire: Fire, parts: Mapping[int, Contribution], seconds: float) -> SimulatedResult:
        return outcome_of(fire, list(parts.values()), 1_000_000, seconds)

    exchange = SimulatedExchange(kernel, ways, Quorum(), lambda _: True, go_on, reduce)
    for each in fleet:
        each.generation = 1
        go_on(each)
    kernel.run(200.0)
    return round((ended_s[-1] - ended_s[3]) / (len(ended_s) - 4), 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replicas", type=int, nargs="+", default=[4, 8])
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[91, 92, 93, 94, 95])
    parser.add_argument(
        "--results", default="exchange_time_to_loss", help="name of the file below benchmarks/results"
    )
    parser.add_argument("--calibrate", action="store_true", help="only compare the model's rounds with links.py's")
    arguments = parser.parse_args()
    if arguments.calibrate:
        found = [calibration(replicas) for replicas in arguments.replicas]
        print(*found, sep="\n")
        save("exchange_calibration", {"runs": found})
        return
    quieten()
    torch.set_num_threads(1)
    for seed, replicas, arm in product(arguments.seeds, arguments.replicas, ["ddp", *arguments.arms]):
        train(replicas, seed, arm, CELLS if arm != "ddp" else [("", 0.0)], arguments.results)


def train(replicas: int, seed: int, arm: str, cells: Sequence[tuple[str, float]], results: str) -> None:
    """Make the runs of one arm and seed that are not made yet."""
    key = {"replicas": replicas, "seed": seed, "arm": arm}
    left = [(fleet, step) for fleet, step in cells if not made(results, **key, fleet=fleet, step_s=step)]
    if not left:
        return
    rates = rates_for(LEARNING_RATES, MODEL, replicas)
    scale = rate_of(rates, "ddp" if arm == "ddp" else "kpool_auto")
    settings = () if arm == "ddp" else ("train.optimizer=fleet_adamw", *ARMS[arm].settings)
    spec, lab = laboratory(MODEL, replicas, seed, scale, settings)
    for fleet, step in left:
        began_s, every = time.process_time(), 32
        if arm == "ddp":
            found: dict[str, Any] = {"curve": ddp(spec, lab, every)}
        else:
            found = measured(spec, lab, ARMS[arm], step, SLOWER[fleet], every)
        run = {**key, "fleet": fleet, "step_s": step, **found, "cpu_s": round(time.process_time() - began_s, 1)}
        print({**run, "curve": run["curve"][-1]}, flush=True)
        add(results, run, payload_s=PAYLOAD_S, frames=FRAMES, both_ways=BOTH_WAYS, latency_s=LATENCY_S)


if __name__ == "__main__":
    main()
