"""Does the simulator say what a real fleet does? Real runs of `tsugi finetune`, and the same settings simulated.

    python benchmarks/calibrate.py --replicas 4 8

The tiny model on an emulated device (`fault.step_s`), so slow that this machine keeps up with all replicas; the
last replica takes four times as long, and every step is drawn from a lognormal. The simulator gets the settings
and the links that `tsugi bench --simulate` has by default: nothing in it is fitted to the run. It draws its own
steps from seeds of its own, so several are simulated and their mean is compared.
"""

from __future__ import annotations

import argparse
import os
import statistics
from dataclasses import replace
from datetime import datetime
from typing import Any

from harness import finetune, save

from tsugi_cli.bench.simulate import modelled
from tsugi_cli.bench.simulate.request import Asked, read
from tsugi_kpool.core.events import Name
from tsugi_kpool.sim import check_accounting, check_agreement

SEEDS = range(10)
FIGURES = ("goodput", "rounds", "seconds", "rounds_per_min")


def settings(replicas: int, step_s: float, jitter: float) -> Asked:
    """Of both arms."""
    scenario = ["bench.scenario=straggler4x", f"bench.scenario.jitter={jitter}", f"bench.device_step_s={step_s}"]
    return read([*scenario, f"replicas={replicas}", "model=tiny", "recipe=smollm2_tools", "data.n_test=0"])


def measured(asked: Asked, count: int) -> dict[str, Any]:
    """A real run."""
    (replicas,) = asked.simulation.replicas
    moves = modelled.speeds(asked.simulation, asked.spec, replicas)
    steps = ",".join(f"{each}:{seconds:g}" for each, seconds in enumerate(modelled.step_s(moves, replicas)))
    load = os.getloadavg()[0]
    summary = finetune(
        *asked.base, f"topology.replicas={replicas}", f"topology.min_replicas={replicas}", "data.scorer=null",
        f"train.max_steps={count}", "train.checkpoint.every_s=0", f"fault.step_s=[{steps}]",
        f"fault.jitter={moves.jitter}",
    )  # fmt: skip
    rows = summary["replicas"]
    found = figures(summary["goodput"], summary["version"], max(row["trained_s"] for row in rows))
    usual = [row["busy_s"] / row["steps"] for row in rows]
    return {
        **found,
        "order_to_commit_s": statistics.median(latencies(summary["events"])),
        "step_s": usual,
        "steps": [row["steps"] for row in rows],
        "load_average": [load, os.getloadavg()[0]],
    }


def latencies(events: list[dict[str, Any]]) -> list[float]:
    """For each round the seconds from the hub's order to its commit."""
    at_s = {
        (event["event"], event["round"]): datetime.fromisoformat(event["time"]).timestamp()
        for event in events
        if event["event"] in (Name.FIRED, Name.COMMITTED)
    }
    return [
        at_s[Name.COMMITTED, number] - at_s[Name.FIRED, number] for name, number in at_s if name == Name.COMMITTED
    ]


def predicted(asked: Asked, count: int) -> list[dict[str, Any]]:
    """Simulated runs of the same length."""
    (replicas,) = asked.simulation.replicas
    values = modelled.adapter_values(asked.simulation, asked.spec)
    found = []
    for seed in SEEDS:
        spec = replace(asked.spec, seed=seed)
        samples = count * spec.train.micro_batch
        fleet = modelled.fleet(asked.simulation, spec, replicas, values, samples)
        report = fleet.run(1e6)
        if broken := check_agreement(fleet) + check_accounting(fleet):
            raise SystemExit(f"seed {seed}: {broken[0]}")
        trained_s = max(each.progress.busy_s + each.progress.waited_s for each in fleet.replicas)
        found.append(figures(report.goodput or 0.0, report.versions, trained_s))
    return found


def figures(goodput: float, rounds: int, seconds: float) -> dict[str, Any]:
    return {"goodput": goodput, "rounds": rounds, "seconds": seconds, "rounds_per_min": rounds * 60 / seconds}


def compare(replicas: int, given: argparse.Namespace) -> dict[str, Any]:
    asked, steps = settings(replicas, given.step_s, given.jitter), given.steps * replicas
    seen, foreseen = measured(asked, steps), predicted(asked, steps)
    means = {name: statistics.fmean(run[name] for run in foreseen) for name in FIGURES}
    ranges = {name: [min(run[name] for run in foreseen), max(run[name] for run in foreseen)] for name in FIGURES}
    return {
        "replicas": replicas,
        "device_step_s": given.step_s,
        "jitter": given.jitter,
        "fleet_steps": steps,
        "measured": seen,
        "predicted": means,
        "predicted_range": ranges,
        "error": {name: means[name] / seen[name] - 1 for name in FIGURES},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replicas", type=int, nargs="+", default=[4, 8])
    parser.add_argument("--step-s", type=float, default=1.0)
    parser.add_argument("--jitter", type=float, default=0.3)
    parser.add_argument("--steps", type=int, default=100, help="of each replica, in the mean")
    given = parser.parse_args()
    runs = []
    for replicas in given.replicas:
        runs.append(compare(replicas, given))
        print(runs[-1], flush=True)
        save("simulate_calibration", {"seeds": list(SEEDS), "runs": runs})


if __name__ == "__main__":
    main()
